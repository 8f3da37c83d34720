// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// groupsPerSocket is how many groups one socket joins. The kernel charges each
// to the socket's option memory (net.core.optmem_max, once 20 kB), which holds
// about 300.
const groupsPerSocket = 200

// Groups keeps an interface in the solicited-node groups of a set of addresses,
// so that its hardware filter and snooping switches (by MLD reports) let the
// questions through. The zero value is in none. It is not safe for concurrent
// use.
type Groups struct {
	// Interface is the index of the interface. It stands for the zone too: a
	// zone's name would be looked up in the wrong network namespace when one
	// process works in several.
	Interface int

	sockets []groupSocket
	joined  map[netip.Addr]int // group -> index in sockets
}

type groupSocket struct {
	fd   int
	used int
}

// Set joins the groups of addresses and leaves the others. After an error the
// groups may be anywhere between old and new; calling Set again goes on.
func (g *Groups) Set(addresses []netip.Addr) error {
	if g.joined == nil {
		g.joined = map[netip.Addr]int{}
	}
	want := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		want[SolicitedNode(a)] = true
	}
	var errs []error
	for group, at := range g.joined {
		if !want[group] {
			errs = append(errs, g.leave(group, at))
		}
	}
	for group := range want {
		if _, ok := g.joined[group]; !ok {
			if err := g.join(group); err != nil {
				errs = append(errs, err)
				break // the next one would fail for the same reason
			}
		}
	}
	return errors.Join(errs...)
}

// Len is the number of groups joined.
func (g *Groups) Len() int { return len(g.joined) }

func (g *Groups) join(group netip.Addr) error {
	at := slices.IndexFunc(g.sockets, func(s groupSocket) bool { return s.used < groupsPerSocket })
	if at < 0 {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket for multicast groups: %w", err)
		}
		g.sockets = append(g.sockets, groupSocket{fd: fd})
		at = len(g.sockets) - 1
	}
	if err := unix.SetsockoptIPv6Mreq(g.sockets[at].fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, g.request(group)); err != nil {
		return fmt.Errorf("join group %v on interface %d: %w", group, g.Interface, err)
	}
	g.sockets[at].used++
	g.joined[group] = at
	return nil
}

func (g *Groups) leave(group netip.Addr, at int) error {
	delete(g.joined, group)
	g.sockets[at].used--
	err := unix.SetsockoptIPv6Mreq(g.sockets[at].fd, unix.IPPROTO_IPV6, unix.IPV6_LEAVE_GROUP, g.request(group))
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("leave group %v on interface %d: %w", group, g.Interface, err)
	}
	return nil
}

func (g *Groups) request(group netip.Addr) *unix.IPv6Mreq {
	return &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(g.Interface)}
}

// Close leaves all groups.
func (g *Groups) Close() {
	for _, s := range g.sockets {
		_ = unix.Close(s.fd) // the kernel leaves the socket's groups
	}
	g.sockets, g.joined = nil, nil
}
