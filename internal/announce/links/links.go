// SPDX-License-Identifier: Apache-2.0

package links

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// Link is an interface of this node that could carry announcements.
type Link struct {
	elect.Interface
	Index int
	MAC   nodeinfo.MAC
	Ports []nodeinfo.MAC // of a bond, at most maxPorts
	// Own are its addresses, which this node asks with.
	Own    []netip.Addr
	Master int // index of the VRF that it is in; 0 for none
}

// Info returns what is published about l.
func (l *Link) Info() nodeinfo.Interface {
	return nodeinfo.Interface{Interface: l.Interface, MAC: l.MAC, Ports: l.Ports}
}

// maxPorts is how many ports of a bond are published.
const maxPorts = 16

// debounceTime is for how long events are gathered before the interfaces are read
// again. A carrier that is lost has to be noticed well within 100 ms.
const debounceTime = 3 * time.Millisecond

// Watch sends the interfaces now, and again whenever they change, until ctx
// ends. It works by netlink events; if the event socket fails (too slow, for
// instance) it opens another one and reads everything.
func Watch(ctx context.Context, out chan<- []Link) error {
	for ctx.Err() == nil {
		if err := watchOnce(ctx, out); err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "Watching interfaces failed, will start again")
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

func watchOnce(ctx context.Context, out chan<- []Link) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 3)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to link events: %w", err)
	}
	defer drain(links)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to address events: %w", err)
	}
	defer drain(addrs)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: fail}); err != nil {
		return fmt.Errorf("subscribe to route events: %w", err)
	}
	defer drain(routes)

	nextHops := watchNextHops(done)

	timer := time.NewTimer(0)
	subnets := map[netip.Prefix]bool{} // as last read
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("receive events: %w", err)
		case <-timer.C:
			now, err := read()
			if err != nil {
				return err
			}
			clear(subnets)
			for _, l := range now {
				for _, p := range l.Subnets {
					subnets[p] = true
				}
			}
			select {
			case out <- now:
			case <-ctx.Done():
				return nil
			}
			continue
		case _, ok := <-links:
			if !ok {
				return fmt.Errorf("receive link events: closed")
			}
		case _, ok := <-addrs:
			if !ok {
				return fmt.Errorf("receive address events: closed")
			}
		case r, ok := <-routes:
			if !ok {
				return fmt.Errorf("receive route events: closed")
			}
			if !isDefault(r.Dst) && !subnets[prefix(r.Dst)] && r.Protocol != unix.RTPROT_RA {
				continue
			}
		case <-nextHops:
		}
		timer.Reset(debounceTime)
	}
}

// Received returns how many frames the interface with an index has received; ok is
// false if that cannot be read.
func Received(index int) (n uint64, ok bool) {
	l, err := netlink.LinkByIndex(index)
	if err != nil || l.Attrs().Statistics == nil {
		return 0, false
	}
	return l.Attrs().Statistics.RxPackets, true
}

// drain lets the library's goroutine, which may be about to send, come to its
// end.
func drain[T any](c <-chan T) {
	go func() {
		for range c {
		}
	}()
}

// read returns the Ethernet interfaces that are no ports of a bridge or bond,
// sorted by name.
func read() ([]Link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := []Link{}
	at := map[int]int{} // interface index -> position in out
	for _, l := range all {
		a := l.Attrs()
		if len(a.HardwareAddr) != 6 || a.Flags&net.FlagLoopback != 0 || a.RawFlags&unix.IFF_NOARP != 0 || enslaved(a, all) {
			continue
		}
		out = append(out, Link{
			Interface: elect.Interface{Name: a.Name, Up: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0},
			Index:     a.Index,
			MAC:       nodeinfo.MAC(a.HardwareAddr),
			Ports:     portsOf(l, all),
			Master:    a.MasterIndex,
		})
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	for i := range out {
		at[out[i].Index] = i
	}
	if err := readSubnets(out, at); err != nil {
		return nil, err
	}
	if err := readRoutes(out, at); err != nil {
		return nil, err
	}
	markSeconds(out, all)
	return out, nil
}

// portsOf returns the hardware addresses of a bond's ports.
func portsOf(bond netlink.Link, all []netlink.Link) []nodeinfo.MAC {
	if bond.Type() != "bond" {
		return nil
	}
	var out []nodeinfo.MAC
	for _, l := range all {
		a := l.Attrs()
		if a.MasterIndex == bond.Attrs().Index && len(a.HardwareAddr) == 6 && len(out) < maxPorts {
			out = append(out, nodeinfo.MAC(a.HardwareAddr))
		}
	}
	return out
}

// enslaved reports whether frames of the interface belong to a bridge or bond. A
// VRF only changes routing.
func enslaved(a *netlink.LinkAttrs, all []netlink.Link) bool {
	if a.MasterIndex == 0 {
		return false
	}
	for _, l := range all {
		if l.Attrs().Index == a.MasterIndex {
			return l.Type() != "vrf"
		}
	}
	return true
}

func readSubnets(out []Link, at map[int]int) error {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		i, ok := at[a.LinkIndex]
		if !ok || a.IPNet == nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			out[i].Own = append(out[i].Own, ip)
		}
		out[i].addSubnet(prefix(a.IPNet))
	}
	return nil
}

// addSubnet takes an on-link prefix. An address alone (a bound service address,
// DHCPv6) is none.
func (l *Link) addSubnet(p netip.Prefix) {
	if p.IsValid() && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && !slices.Contains(l.Subnets, p) {
		l.Subnets = append(l.Subnets, p)
	}
}

// prefix returns the zero Prefix for nil.
func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits).Masked()
}

func isDefault(n *net.IPNet) bool {
	p := prefix(n)
	return !p.IsValid() || p.Bits() == 0 && p.Addr().IsUnspecified()
}

// markSeconds finds what the kernel routes by another interface, where several are
// in one subnet: it sends the answers there, and takes what comes in there.
func markSeconds(links []Link, all []netlink.Link) {
	type network struct {
		netip.Prefix
		master int
	}
	in := map[network][]int{}
	for i, l := range links {
		for _, p := range l.Subnets {
			in[network{p, l.Master}] = append(in[network{p, l.Master}], i)
		}
	}
	for n, sharing := range in {
		if len(sharing) < 2 {
			continue
		}
		first := routed(links, n.Prefix, masterName(all, n.master))
		if !slices.ContainsFunc(sharing, func(i int) bool { return links[i].Index == first }) {
			continue // elect takes the first by name
		}
		for _, i := range sharing {
			if links[i].Index != first {
				links[i].Second = append(links[i].Second, n.Prefix)
			}
		}
	}
	for i := range links {
		slices.SortFunc(links[i].Subnets, comparePrefixes)
		slices.SortFunc(links[i].Second, comparePrefixes)
	}
}

func comparePrefixes(a, b netip.Prefix) int { return cmp.Compare(a.String(), b.String()) }

func masterName(all []netlink.Link, index int) string {
	for _, l := range all {
		if index != 0 && l.Attrs().Index == index {
			return l.Attrs().Name
		}
	}
	return ""
}

// routed returns the index of the interface by which the kernel routes to p, or 0.
func routed(links []Link, p netip.Prefix, vrf string) int {
	own := func(a netip.Addr) bool {
		return slices.ContainsFunc(links, func(l Link) bool { return slices.Contains(l.Own, a) })
	}
	// Any address but this node's own, which it would route to itself.
	a := p.Addr().Next()
	for own(a) {
		a = a.Next()
	}
	routes, err := netlink.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{VrfName: vrf})
	if err != nil || len(routes) == 0 {
		return 0
	}
	return routes[0].LinkIndex
}

// Relevant keeps the interfaces, and of their subnets those, that any of the
// addresses could be announced on.
func Relevant(links []Link, addresses []elect.Address) []Link {
	ifaces := Interfaces(links)
	used := map[int]bool{}
	subnets := map[netip.Prefix]bool{}
	for _, l := range links {
		for _, p := range l.Second {
			subnets[p] = true // shows which of two interfaces is on the same LAN
		}
	}
	for i := range addresses {
		for _, l := range elect.On(&addresses[i], ifaces) {
			used[l] = true
		}
		for _, l := range links {
			for _, p := range l.Subnets {
				if p.Contains(addresses[i].Addr) {
					subnets[p] = true
				}
			}
		}
	}
	out := []Link{}
	for i, l := range links {
		if !used[i] {
			continue
		}
		l.Subnets = slices.DeleteFunc(slices.Clone(l.Subnets), func(p netip.Prefix) bool { return !subnets[p] })
		l.Second = slices.DeleteFunc(slices.Clone(l.Second), func(p netip.Prefix) bool { return !subnets[p] })
		out = append(out, l)
	}
	return out
}

func Interfaces(links []Link) []elect.Interface {
	out := make([]elect.Interface, 0, len(links))
	for _, l := range links {
		out = append(out, l.Interface)
	}
	return out
}
