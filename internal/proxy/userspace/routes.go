// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	// RouteTable is the routing table in use; nobody else may use it.
	RouteTable = 0xca5f
	// rulePriority puts it right behind the kernel's local one, before whatever
	// a network plugin has.
	rulePriority = 1
)

// routes make packets with our mark local, whatever their destination: a rule
// by the mark and a table with one route, for each family.
type routes struct {
	link     *netlink.Handle
	families []model.Family
}

func newRoutes(families []model.Family) (*routes, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routing socket: %w", err)
	}
	return &routes{h, families}, nil
}

func netlinkFamily(f model.Family) int {
	if f == model.IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// ensure makes what is missing and returns how much that was.
func (r *routes) ensure() (missing int, err error) {
	for _, f := range r.families {
		for _, ensure := range []func(model.Family) (bool, error){r.ensureRoute, r.ensureRule} {
			made, err := ensure(f)
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
				return missing, &backend.UnsupportedError{Feature: f.String() + " policy routing (CONFIG_IP_MULTIPLE_TABLES)", Err: err}
			}
			if err != nil {
				return missing, err
			}
			if made {
				missing++
			}
		}
	}
	return missing, nil
}

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

func (r *routes) ensureRule(f model.Family) (made bool, err error) {
	want := markRule(f)
	list, err := whole(func() ([]netlink.Rule, error) {
		return r.link.RuleListFiltered(want.Family, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PRIORITY|netlink.RT_FILTER_MARK)
	})
	if err != nil {
		return false, fmt.Errorf("list routing rules: %w", err)
	}
	if len(list) > 0 {
		return false, nil
	}
	if err := r.link.RuleAdd(want); err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add routing rule: %w", err)
	}
	return true, nil
}

func markRule(f model.Family) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Priority, rule.Mark = netlinkFamily(f), RouteTable, rulePriority, uint32(Mark)
	return rule
}

func (r *routes) ensureRoute(f model.Family) (made bool, err error) {
	list, err := whole(func() ([]netlink.Route, error) {
		return r.link.RouteListFiltered(netlinkFamily(f), &netlink.Route{Table: RouteTable}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	for i := range list {
		if list[i].Type == unix.RTN_LOCAL && (list[i].Dst == nil || list[i].Dst.IP.IsUnspecified()) {
			return false, nil
		}
	}
	route, err := r.route(f)
	if err == nil {
		err = r.link.RouteReplace(route)
	}
	if err != nil {
		return false, fmt.Errorf("make packets of the proxy local: %w", err)
	}
	return true, nil
}

func (r *routes) route(f model.Family) (*netlink.Route, error) {
	lo, err := r.link.LinkByName("lo")
	if err != nil {
		return nil, err
	}
	any := f.Unspecified()
	route := &netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: RouteTable, Type: unix.RTN_LOCAL,
		Dst: &net.IPNet{IP: any.AsSlice(), Mask: net.CIDRMask(0, any.BitLen())},
	}
	if f == model.IPv4 {
		route.Scope = netlink.SCOPE_HOST
	}
	return route, nil
}

// remove deletes rules and routes; absent ones are no error.
func (r *routes) remove() error {
	absent := func(err error) bool {
		return err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EAFNOSUPPORT)
	}
	var errs []error
	for _, f := range r.families {
		if err := r.link.RuleDel(markRule(f)); !absent(err) {
			errs = append(errs, fmt.Errorf("delete routing rule: %w", err))
		}
		route, err := r.route(f)
		if err == nil {
			err = r.link.RouteDel(route)
		}
		if !absent(err) {
			errs = append(errs, fmt.Errorf("delete route: %w", err))
		}
	}
	return errors.Join(errs...)
}

func (r *routes) close() { r.link.Close() }
