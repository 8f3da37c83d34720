// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/attributes"
	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	ipvsnl "github.com/causeway-lb/causeway/internal/netlink/ipvs"
)

// ipvs is what mode ipvs leaves beside iptables rules.
type ipvs struct {
	link netlink.Link
	// addresses of the interface, and those that are routes already.
	addresses []netlink.Addr
	routes    []netlink.Route
	servers   []ipvsnl.Key
	sets      []string
}

const (
	// localTable is the routing table of what the node takes for its own. Only
	// there does a route let sockets keep an address that no interface has.
	localTable = unix.RT_TABLE_LOCAL
	// routeProtocol marks our routes there.
	routeProtocol = 0xca
	// routeMetric puts them behind the kernel's own.
	routeMetric = 2048
)

// findIPVS starts from the interface, which is removed last.
func findIPVS() (*ipvs, error) {
	link, err := netlink.LinkByName(Device)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", Device, err)
	}
	if link.Type() != "dummy" {
		return nil, nil // somebody else's
	}
	v := &ipvs{link: link}
	if v.addresses, err = again(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) }); err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", Device, err)
	}
	v.addresses = slices.DeleteFunc(v.addresses, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := again(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: localTable, Protocol: routeProtocol}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		})
		if err != nil {
			return nil, fmt.Errorf("list local routes: %w", err)
		}
		v.routes = append(v.routes, list...)
	}
	ports, err := v.findSets()
	if err != nil {
		return nil, err
	}
	return v, v.findServers(ports)
}

// again repeats a list that changes meanwhile have spoilt.
func again[T any](list func() ([]T, error)) (out []T, err error) {
	for range 20 {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// port is a NodePort.
type port struct {
	protocol uint8
	number   uint16
}

// protocols of the sets of NodePorts.
var protocols = map[string]uint8{
	"KUBE-NODE-PORT-TCP": unix.IPPROTO_TCP, "KUBE-NODE-PORT-LOCAL-TCP": unix.IPPROTO_TCP,
	"KUBE-NODE-PORT-UDP": unix.IPPROTO_UDP, "KUBE-NODE-PORT-LOCAL-UDP": unix.IPPROTO_UDP,
	"KUBE-NODE-PORT-SCTP-HASH": unix.IPPROTO_SCTP, "KUBE-NODE-PORT-LOCAL-SCTP-HASH": unix.IPPROTO_SCTP,
}

// findSets finds the ip sets, and what those of NodePorts hold.
func (v *ipvs) findSets() (map[port]bool, error) {
	messages, err := again(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, nl.GetIpsetFlags(nl.IPSET_CMD_LIST))
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_NETLINK, Version: nl.NFNETLINK_V0})
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
		return req.Execute(unix.NETLINK_NETFILTER, 0)
	})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, fs.ErrNotExist):
		return nil, nil // a kernel without ip sets
	case err != nil:
		return nil, fmt.Errorf("list ip sets: %w", err)
	}
	ports := map[port]bool{}
	for _, m := range messages { // a long set comes in several
		name, entries := decodeSet(m)
		plain := setOf(name)
		if plain == "" {
			continue
		}
		if !slices.Contains(v.sets, name) {
			v.sets = append(v.sets, name)
		}
		if protocol := protocols[plain]; protocol != 0 {
			for _, number := range entries {
				ports[port{protocol, number}] = true
			}
		}
	}
	return ports, nil
}

// decodeSet reads a set's name and the ports of its entries.
func decodeSet(message []byte) (name string, ports []uint16) {
	const headerLen = 4 // nfgenmsg
	if len(message) < headerLen {
		return "", nil
	}
	for a := attributes.Decode(message[headerLen:]); a.Next(); {
		switch a.Type {
		case nl.IPSET_ATTR_SETNAME:
			name = attributes.String(a.Data)
		case nl.IPSET_ATTR_ADT:
			for n := attributes.Decode(a.Data); n.Next(); {
				for m := attributes.Decode(n.Data); m.Next(); {
					if m.Type == nl.IPSET_ATTR_PORT && len(m.Data) >= 2 {
						ports = append(ports, attributes.BE16(m.Data))
					}
				}
			}
		}
	}
	return name, ports
}

// findServers finds kube-proxy's virtual servers among all.
func (v *ipvs) findServers(ports map[port]bool) error {
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err != nil {
		return nil //nolint:nilerr // the module isn't loaded: there are none
	}
	conn, err := ipvsnl.Dial()
	if err != nil {
		return fmt.Errorf("list virtual servers: %w", err)
	}
	defer conn.Close()
	all, err := conn.Read()
	if err != nil {
		return fmt.Errorf("list virtual servers: %w", err)
	}
	nodes, err := nodeAddresses()
	if err != nil {
		return err
	}
	v.servers = theirs(all, v.local(), nodes, ports)
	return nil
}

// theirs are kube-proxy's virtual servers among all: those of Services, whose
// addresses are given, and those of NodePorts at the node's.
func theirs(all []ipvsnl.VirtualServer, services, nodes map[netip.Addr]bool, ports map[port]bool) []ipvsnl.Key {
	type endpoint struct {
		protocol uint8
		at       netip.AddrPort
	}
	candidates := slices.DeleteFunc(slices.Clone(all), func(s ipvsnl.VirtualServer) bool { return s.Mark != 0 || s.Tag })
	endpoints := map[endpoint]bool{}
	for i := range candidates {
		if s := &candidates[i]; services[s.Addr] {
			for _, r := range s.Reals {
				endpoints[endpoint{s.Protocol, r.AddrPort}] = true
			}
		}
	}
	// A first sync that was cut short has made the virtual servers of NodePorts and
	// not yet filled the sets.
	cutShort := func(s *ipvsnl.VirtualServer) bool {
		const first, last = 30000, 32767 // the API server's default
		return s.Port >= first && s.Port <= last && len(s.Reals) > 0 &&
			!slices.ContainsFunc(s.Reals, func(r ipvsnl.RealServer) bool { return !endpoints[endpoint{s.Protocol, r.AddrPort}] })
	}
	var out []ipvsnl.Key
	for i := range candidates {
		s := &candidates[i]
		if services[s.Addr] || nodes[s.Addr] && (ports[port{s.Protocol, s.Port}] || cutShort(s)) {
			out = append(out, s.Key)
		}
	}
	return out
}

// nodeAddresses are those of all interfaces.
func nodeAddresses() (map[netip.Addr]bool, error) {
	list, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			out[addr.Unmap()] = true
		}
	}
	return out, nil
}

// local are the Services' addresses.
func (v *ipvs) local() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out[a.Unmap()] = true
		}
	}
	for _, a := range v.addresses {
		add(a.IP)
	}
	for _, r := range v.routes {
		if r.Dst != nil {
			add(r.Dst.IP)
		}
	}
	return out
}

func (v *ipvs) lines() []string {
	return []string{fmt.Sprintf("remove, when its connections have ended: %d virtual servers, %d ip sets, interface %s with %d addresses",
		len(v.servers), len(v.sets), Device, len(v.local()))}
}

// remove removes everything, the interface last.
func (v *ipvs) remove() error {
	if err := v.removeServers(); err != nil {
		return err
	}
	for _, r := range v.routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove local route %s: %w", r.Dst, err)
		}
	}
	for _, name := range v.sets {
		if err := netlink.IpsetDestroy(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove ip set %s: %w", name, err)
		}
	}
	if err := netlink.LinkDel(v.link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", Device, err)
	}
	return nil
}

// route turns the interface's addresses into local routes: first the route, then
// the address goes.
func (v *ipvs) route() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	source, err := v.source()
	if err != nil {
		return err
	}
	for _, a := range v.addresses {
		r := netlink.Route{
			LinkIndex: loopback.Attrs().Index, Table: localTable, Type: unix.RTN_LOCAL, Protocol: routeProtocol, Priority: routeMetric,
			Scope: netlink.SCOPE_HOST, Dst: &net.IPNet{IP: a.IP, Mask: a.Mask},
		}
		if a.IP.To4() != nil {
			r.Src = source
		}
		if err := netlink.RouteAdd(&r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("keep %s local: %w", a.IP, err)
		}
		if err := netlink.AddrDel(v.link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s from %s: %w", a.IP, Device, err)
		}
		v.routes = append(v.routes, r)
	}
	v.addresses = nil
	return nil
}

// source is an IPv4 address of the node that it can send from to Services. Left
// to itself the kernel would take the Service's own. IPv6 chooses well.
func (v *ipvs) source() (net.IP, error) {
	list, err := again(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	best := net.IP(nil)
	for _, a := range list {
		switch {
		case a.LinkIndex == v.link.Attrs().Index || !a.IP.IsGlobalUnicast():
		case best == nil || a.Scope == int(netlink.SCOPE_UNIVERSE):
			if best = a.IP; a.Scope == int(netlink.SCOPE_UNIVERSE) {
				return best, nil
			}
		}
	}
	return best, nil
}

// drain returns when no connection needs what is still there.
func (v *ipvs) drain(ctx context.Context, cfg Config) error {
	const forget = 10 // ticks
	deadline := time.Now().Add(cfg.Drain)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		if i%forget == 0 {
			if err := v.clean((*conntrack.Entry).Ended); err != nil {
				return err
			}
		}
		busy, err := v.busy()
		if err != nil || busy == 0 || !time.Now().Before(deadline) {
			return err
		}
		if cfg.Waiting != nil {
			cfg.Waiting(busy)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %d connections through kube-proxy's virtual servers: %w", busy, ctx.Err())
		}
	}
}

// busy counts connections: those through virtual servers, and those of the node
// that have a Service's address for their own.
func (v *ipvs) busy() (int, error) {
	busy := 0
	if len(v.servers) > 0 {
		conn, err := ipvsnl.Dial()
		if err != nil {
			return 0, fmt.Errorf("count connections: %w", err)
		}
		defer conn.Close()
		for _, key := range v.servers {
			reals, err := conn.ReadReals(key)
			if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, fs.ErrNotExist) {
				return 0, fmt.Errorf("count connections to %s: %w", key, err)
			}
			for _, r := range reals {
				busy += int(r.Active)
			}
		}
	}
	mine := v.local()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := again(func() ([]*netlink.Socket, error) { return netlink.SocketDiagTCP(family) })
		if err != nil {
			return 0, fmt.Errorf("list sockets: %w", err)
		}
		for _, s := range sockets {
			if s.State == netlink.TCP_LISTEN || s.State == netlink.TCP_TIME_WAIT {
				continue
			}
			if a, ok := netip.AddrFromSlice(s.ID.Source); ok && mine[a.Unmap()] {
				busy++
			}
		}
	}
	return busy, nil
}

// removeServers removes the virtual servers, and the flows that they carried:
// connection tracking would not have them translated by anybody else.
func (v *ipvs) removeServers() error {
	if len(v.servers) == 0 {
		return nil
	}
	conn, err := ipvsnl.Dial()
	if err != nil {
		return fmt.Errorf("remove virtual servers: %w", err)
	}
	defer conn.Close()
	var changes []ipvsnl.Change
	for _, key := range v.servers {
		changes = append(changes, ipvsnl.Change{Op: ipvsnl.DeleteServer, Server: key})
	}
	var errs []error
	for _, err := range conn.Do(changes) {
		if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, v.clean(func(*conntrack.Entry) bool { return true }))...)
}

// clean removes the flows to the virtual servers that match, but none that a rule
// translated. The kernel takes a connection from the same port as one that has ended
// for that one, which no rule translates either.
func (v *ipvs) clean(match func(*conntrack.Entry) bool) error {
	dialled := map[conntrack.Key]bool{}
	for _, key := range v.servers {
		dialled[conntrack.Key{Addr: key.Addr, Port: key.Port, Protocol: key.Protocol}] = true
	}
	err := conntrack.DeleteDialled(dialled, func(e *conntrack.Entry) bool { return !e.MappedByRule() && match(e) })
	if err != nil {
		return fmt.Errorf("remove flows of virtual servers: %w", err)
	}
	return nil
}
