// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	// rulePriority puts our table right behind the kernel's local one, before
	// whatever a network plugin has.
	rulePriority = 1
	// DefaultRouteTable is the routing table if Config names none.
	DefaultRouteTable = 0xca5e
)

// routes make addresses local: a dummy interface, a routing table of local
// routes on it, and a rule per family that leads there.
type routes struct {
	link     *netlink.Handle
	families []model.Family
	table    int
	index    int // of the interface; 0 is not known
	// source is what the node itself sends from to addresses that have a route.
	// By itself the kernel would take the address itself, and then refuse it, as
	// no interface has it. IPv6 chooses well.
	source net.IP
}

func newRoutes(families []model.Family, table int) (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	return &routes{link: h, families: families, table: table}, nil
}

func (r *routes) close() { r.link.Close() }

// whole asks again while changes meanwhile spoil a list.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 20
	for range tries - 1 {
		if out, err := list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return list()
}

func netlinkFamily(f model.Family) int {
	if f == model.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// read makes the interface and the rules if need be, and returns the addresses
// that have a route and those that the node itself has.
func (r *routes) read() (routed, own map[netip.Addr]bool, err error) {
	if err := r.ensureLink(); err != nil {
		return nil, nil, err
	}
	if err := r.ensureRules(); err != nil {
		return nil, nil, err
	}
	if own, err = r.own(); err != nil {
		return nil, nil, err
	}
	r.source = r.choose(own)
	routed, err = r.listed()
	return routed, own, err
}

// choose gives the node's IPv4 address towards the world, else any.
func (r *routes) choose(own map[netip.Addr]bool) net.IP {
	if found, err := r.link.RouteGet(net.IPv4(198, 51, 100, 1)); err == nil && len(found) > 0 {
		if a, ok := netip.AddrFromSlice(found[0].Src); ok && own[a.Unmap()] && !a.IsLoopback() {
			return found[0].Src
		}
	}
	var best netip.Addr
	for a := range own {
		if a.Is4() && a.IsGlobalUnicast() && (!best.IsValid() || a.Less(best)) {
			best = a
		}
	}
	return best.AsSlice()
}

// listed returns the addresses that have a route.
func (r *routes) listed() (map[netip.Addr]bool, error) {
	routed := map[netip.Addr]bool{}
	for _, f := range r.families {
		list, err := whole(func() ([]netlink.Route, error) {
			return r.link.RouteListFiltered(netlinkFamily(f), &netlink.Route{Table: r.table}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range list {
			if route.Dst == nil {
				continue
			}
			if a, ok := netip.AddrFromSlice(route.Dst.IP); ok && route.LinkIndex == r.index && (f == model.IPv6 || route.Src.Equal(r.source)) {
				routed[a.Unmap()] = true
			}
		}
	}
	return routed, nil
}

// own returns the addresses of the node's interfaces.
func (r *routes) own() (map[netip.Addr]bool, error) {
	own := map[netip.Addr]bool{}
	for _, f := range r.families {
		list, err := whole(func() ([]netlink.Addr, error) { return r.link.AddrList(nil, netlinkFamily(f)) })
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range list {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				own[addr.Unmap()] = true
			}
		}
	}
	return own, nil
}

func (r *routes) ensureLink() error {
	link, err := r.link.LinkByName(Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		err = r.link.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: Name}})
		if errors.Is(err, unix.EOPNOTSUPP) {
			return &backend.UnsupportedError{Feature: "dummy interfaces", Err: err}
		}
		if err == nil || errors.Is(err, unix.EEXIST) {
			link, err = r.link.LinkByName(Name)
		}
	}
	if err != nil {
		return fmt.Errorf("make interface %s: %w", Name, err)
	}
	if link.Type() != "dummy" {
		return fmt.Errorf("make interface %s: there is one of type %s with that name: rename or delete it", Name, link.Type())
	}
	if err := r.link.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up interface %s: %w", Name, err)
	}
	r.index = link.Attrs().Index
	return nil
}

func (r *routes) rule(f model.Family) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority = netlinkFamily(f), r.table, rulePriority
	return rule
}

func (r *routes) ensureRules() error {
	for _, f := range r.families {
		list, err := whole(func() ([]netlink.Rule, error) {
			return r.link.RuleListFiltered(netlinkFamily(f), r.rule(f), netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PRIORITY)
		})
		if err != nil {
			return fmt.Errorf("list routing rules: %w", err)
		}
		if len(list) > 0 {
			continue
		}
		if err := r.link.RuleAdd(r.rule(f)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add routing rule: %w", err)
		}
	}
	return nil
}

func (r *routes) route(a netip.Addr) *netlink.Route {
	bits := a.BitLen()
	route := &netlink.Route{
		LinkIndex: r.index, Table: r.table, Type: unix.RTN_LOCAL,
		Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)},
	}
	if a.Is4() {
		route.Scope = netlink.SCOPE_HOST
	}
	return route
}

func (r *routes) add(a netip.Addr) error {
	route := r.route(a)
	if a.Is4() {
		route.Src = r.source
	}
	if err := r.link.RouteReplace(route); err != nil {
		return fmt.Errorf("make %s local: %w", a, err)
	}
	return nil
}

func (r *routes) delete(a netip.Addr) error {
	err := r.link.RouteDel(r.route(a))
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("make %s no longer local: %w", a, err)
	}
	return nil
}

// remove deletes the rules and the interface, and with it the routes. Absent
// is not an error.
func (r *routes) remove() error {
	var errs []error
	for _, f := range r.families {
		err := r.link.RuleDel(r.rule(f))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, fmt.Errorf("delete routing rule: %w", err))
		}
	}
	link, err := r.link.LinkByName(Name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
	case err != nil:
		errs = append(errs, fmt.Errorf("find interface %s: %w", Name, err))
	default:
		if err := r.link.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete interface %s: %w", Name, err))
		}
	}
	return errors.Join(errs...)
}
