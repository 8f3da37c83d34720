// SPDX-License-Identifier: Apache-2.0

package links

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// route is what is read of one of the main table's unicast routes.
type route struct {
	to      netip.Prefix
	metric  uint32
	links   []int // indexes of the interfaces of its next hops
	nextHop int   // of a nexthop object, where the kernel does not report interfaces; else 0
	gateway bool
	ra      bool // learned by a router advertisement
}

// readRoutes finds by which interfaces default routes leave, and the prefixes that
// routers say to be on-link: with DHCPv6 no address of the node shows them.
func readRoutes(out []Link, at map[int]int) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := listRoutes(family)
		if err != nil {
			return err
		}
		for _, l := range defaults(routes, out, at) {
			if family == netlink.FAMILY_V4 {
				out[l].Default4 = true
			} else {
				out[l].Default6 = true
			}
		}
		for _, r := range routes {
			if !r.ra || r.gateway || r.to.Bits() == 0 {
				continue
			}
			for _, index := range r.links {
				if i, ok := at[index]; ok {
					out[i].addSubnet(r.to)
				}
			}
		}
	}
	return nil
}

// defaults returns the positions in out of the interfaces of the best default route:
// the lowest metric that has an interface which is up. It has several where there
// are several next hops, or routes of the same metric.
func defaults(routes []route, out []Link, at map[int]int) []int {
	var best []int
	found, bestUp, bestMetric := false, false, uint32(0)
	for _, r := range routes {
		if r.to.Bits() != 0 {
			continue
		}
		var ours []int
		up := false
		for _, index := range r.links {
			if i, ok := at[index]; ok && !slices.Contains(ours, i) {
				ours = append(ours, i)
				up = up || out[i].Up
			}
		}
		switch {
		case len(ours) == 0:
		case found && up == bestUp && r.metric == bestMetric:
			best = append(best, ours...)
		case !found || up && !bestUp || up == bestUp && r.metric < bestMetric:
			best, found, bestUp, bestMetric = ours, true, up, r.metric
		}
	}
	return best
}

// listRoutes returns the routes of the main table.
func listRoutes(family int) ([]route, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(family))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []route
	unresolved := false
	for _, m := range messages {
		r, ok, err := parseRoute(m)
		if err != nil {
			return nil, fmt.Errorf("read route: %w", err)
		}
		if ok {
			out = append(out, r)
			unresolved = unresolved || len(r.links) == 0 && r.nextHop != 0
		}
	}
	if !unresolved {
		return out, nil
	}
	hops, err := listNextHops()
	if err != nil {
		return nil, err
	}
	for i := range out {
		if len(out[i].links) == 0 {
			out[i].links = hops[out[i].nextHop]
		}
	}
	return out, nil
}

// parseRoute reads an RTM_NEWROUTE. ok is false for what is of no interest: other
// tables and types, and clones.
func parseRoute(b []byte) (r route, ok bool, err error) {
	m := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[m.Len():])
	if err != nil {
		return r, false, err
	}
	table, order := uint32(m.Table), nl.NativeEndian()
	size := map[uint8]int{unix.AF_INET: 4, unix.AF_INET6: 16}[m.Family]
	var to [16]byte
	r.ra = m.Protocol == unix.RTPROT_RA
	for _, a := range attrs {
		switch a.Attr.Type & attrType {
		case unix.RTA_TABLE:
			table = order.Uint32(a.Value)
		case unix.RTA_DST:
			copy(to[:], a.Value)
		case unix.RTA_PRIORITY:
			r.metric = order.Uint32(a.Value)
		case unix.RTA_OIF:
			r.links = append(r.links, int(order.Uint32(a.Value)))
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			r.gateway = true
		case rtaNextHop:
			r.nextHop = int(order.Uint32(a.Value))
		case unix.RTA_MULTIPATH:
			for hop := a.Value; len(hop) >= unix.SizeofRtNexthop; {
				n := nl.DeserializeRtNexthop(hop)
				r.links = append(r.links, int(n.RtNexthop.Ifindex))
				length := (int(n.RtNexthop.Len) + 3) &^ 3
				if length < unix.SizeofRtNexthop || length > len(hop) {
					break
				}
				hop = hop[length:]
			}
		}
	}
	address, _ := netip.AddrFromSlice(to[:size])
	r.to = netip.PrefixFrom(address, int(m.Dst_len))
	return r, table == unix.RT_TABLE_MAIN && m.Type == unix.RTN_UNICAST && m.Flags&unix.RTM_F_CLONED == 0 && r.to.IsValid(), nil
}

const (
	attrType   = 0x3fff // of an attribute, without its flags (NLA_TYPE_MASK)
	rtaNextHop = 30     // RTA_NH_ID
)

// Attributes of a nexthop object (linux/nexthop.h), and the length of struct nhmsg
// and of a member of a group.
const (
	nhaID          = 1
	nhaGroup       = 2
	nhaOIF         = 5
	nhMessage      = 8
	nhGroupMember  = 8
	rtnlgrpNexthop = 32
)

// listNextHops returns the interfaces of nexthop objects, and of groups of them, by
// their number. Routes contain them only with net.ipv4.nexthop_compat_mode=1.
func listNextHops() (map[int][]int, error) {
	request := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP)
	request.AddRawData(make([]byte, nhMessage))
	messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list nexthop objects: %w", err)
	}
	order := nl.NativeEndian()
	out, groups := map[int][]int{}, map[int][]int{}
	for _, m := range messages {
		if len(m) < nhMessage {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nhMessage:])
		if err != nil {
			return nil, fmt.Errorf("read nexthop object: %w", err)
		}
		id := 0
		for _, a := range attrs {
			if a.Attr.Type&attrType == nhaID {
				id = int(order.Uint32(a.Value))
			}
		}
		for _, a := range attrs {
			switch a.Attr.Type & attrType {
			case nhaOIF:
				out[id] = []int{int(order.Uint32(a.Value))}
			case nhaGroup:
				for member := range slices.Chunk(a.Value, nhGroupMember) {
					groups[id] = append(groups[id], int(order.Uint32(member)))
				}
			}
		}
	}
	for id, members := range groups {
		for _, member := range members {
			out[id] = append(out[id], out[member]...)
		}
	}
	return out, nil
}

// watchNextHops receives whenever nexthop objects change, until done is closed.
// Kernels before 5.3 have none.
func watchNextHops(done <-chan struct{}) <-chan struct{} {
	changed := make(chan struct{}, 1)
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, rtnlgrpNexthop)
	if err != nil {
		return changed
	}
	go func() {
		<-done
		socket.Close()
	}()
	go func() {
		for {
			_, _, err := socket.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return // closed
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed
}
