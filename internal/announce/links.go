// SPDX-License-Identifier: Apache-2.0

package announce

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
	"github.com/causeway-lb/causeway/internal/announce/wire"
)

// link is an interface of this node that could carry announcements.
type link struct {
	elect.Interface
	Index int
	MAC   wire.MAC
	Ports []wire.MAC // of a bond, at most maxPorts
}

// maxPorts is how many ports of a bond are told to the other nodes.
const maxPorts = 16

// linkSettle is for how long events are gathered before the interfaces are read
// again. A carrier that is lost has to be noticed well within 100 ms.
const linkSettle = 3 * time.Millisecond

// watchLinks sends the interfaces now, and again whenever they change, until ctx
// ends. It works by netlink events; if the event socket fails (too slow, for
// instance) it opens another one and reads everything.
func watchLinks(ctx context.Context, out chan<- []link) error {
	for ctx.Err() == nil {
		if err := watchLinksOnce(ctx, out); err != nil {
			logr.FromContextOrDiscard(ctx).Error(err, "Watching interfaces failed, will start again")
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

func watchLinksOnce(ctx context.Context, out chan<- []link) error {
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

	timer := time.NewTimer(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("receive events: %w", err)
		case <-timer.C:
			now, err := readLinks()
			if err != nil {
				return err
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
			if !isDefault(&r.Route) {
				continue
			}
		}
		timer.Reset(linkSettle)
	}
}

// drain lets the library's goroutine, which may be about to send, come to its
// end.
func drain[T any](c <-chan T) {
	go func() {
		for range c {
		}
	}()
}

// readLinks gives the Ethernet interfaces that are no ports of a bridge or bond,
// sorted by name.
func readLinks() ([]link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	out := []link{}
	at := map[int]int{} // interface index -> position in out
	for _, l := range all {
		a := l.Attrs()
		if len(a.HardwareAddr) != 6 || a.Flags&net.FlagLoopback != 0 || a.RawFlags&unix.IFF_NOARP != 0 || enslaved(a, all) {
			continue
		}
		out = append(out, link{
			Interface: elect.Interface{Name: a.Name, Up: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_RUNNING != 0},
			Index:     a.Index,
			MAC:       wire.MAC(a.HardwareAddr),
			Ports:     portsOf(l, all),
		})
	}
	slices.SortFunc(out, func(a, b link) int { return cmp.Compare(a.Name, b.Name) })
	for i := range out {
		at[out[i].Index] = i
	}
	if err := readSubnets(out, at); err != nil {
		return nil, err
	}
	return out, readDefaults(out, at)
}

// portsOf gives the hardware addresses of a bond's ports.
func portsOf(bond netlink.Link, all []netlink.Link) []wire.MAC {
	if bond.Type() != "bond" {
		return nil
	}
	var out []wire.MAC
	for _, l := range all {
		a := l.Attrs()
		if a.MasterIndex == bond.Attrs().Index && len(a.HardwareAddr) == 6 && len(out) < maxPorts {
			out = append(out, wire.MAC(a.HardwareAddr))
		}
	}
	return out
}

// enslaved tells whether frames of the interface belong to a bridge or bond. A
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

func readSubnets(out []link, at map[int]int) error {
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
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip, bits).Masked(); p.IsValid() && !ip.IsLinkLocalUnicast() && !slices.Contains(out[i].Subnets, p) {
			out[i].Subnets = append(out[i].Subnets, p)
		}
	}
	for i := range out {
		slices.SortFunc(out[i].Subnets, func(a, b netip.Prefix) int { return cmp.Compare(a.String(), b.String()) })
	}
	return nil
}

func readDefaults(out []link, at map[int]int) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			i, ok := at[r.LinkIndex]
			if !ok || !isDefault(&r) {
				continue
			}
			if family == netlink.FAMILY_V4 {
				out[i].Default4 = true
			} else {
				out[i].Default6 = true
			}
		}
	}
	return nil
}

func isDefault(r *netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified()
}

// relevant keeps the interfaces, and of their subnets those, that any of the
// addresses could be announced on.
func relevant(links []link, addresses []elect.Address) []link {
	ifaces := interfaces(links)
	used := map[int]bool{}
	subnets := map[netip.Prefix]bool{}
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
	out := []link{}
	for i, l := range links {
		if !used[i] {
			continue
		}
		l.Subnets = slices.DeleteFunc(slices.Clone(l.Subnets), func(p netip.Prefix) bool { return !subnets[p] })
		out = append(out, l)
	}
	return out
}

func interfaces(links []link) []elect.Interface {
	out := make([]elect.Interface, 0, len(links))
	for _, l := range links {
		out = append(out, l.Interface)
	}
	return out
}
