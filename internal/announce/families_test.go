// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// TestGossipOfTwoFamilies: the nodes' first InternalIPs are of different families.
// Those that share one gossip by it, whichever comes first; a node with another
// family alone is out of contact with those that lack it, and the link sees to it
// that there is one announcer all the same.
func TestGossipOfTwoFamilies(t *testing.T) {
	v4 := func(ips []netip.Addr) netip.Addr { return ips[slices.IndexFunc(ips, netip.Addr.Is4)] }
	v6 := func(ips []netip.Addr) netip.Addr { return ips[slices.IndexFunc(ips, netip.Addr.Is6)] }
	for _, tc := range []struct {
		name  string
		ips   [3]func(ips []netip.Addr) []netip.Addr
		alive [3]int // of the other nodes, at least
	}{
		{
			"all have both, in another order",
			[3]func([]netip.Addr) []netip.Addr{
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v4(ips), v6(ips)} },
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v6(ips), v4(ips)} },
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v4(ips), v6(ips)} },
			}, [3]int{2, 2, 2},
		},
		{
			"one has both, each of the others another",
			[3]func([]netip.Addr) []netip.Addr{
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v4(ips)} },
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v6(ips), v4(ips)} },
				func(ips []netip.Addr) []netip.Addr { return []netip.Addr{v6(ips)} },
			}, [3]int{1, 2, 1},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip4, vip6}})
			l.must(l.Change(func(c *announcetest.Command) {
				for i := range c.Nodes {
					c.Nodes[i].InternalIPs = tc.ips[i](c.Nodes[i].InternalIPs)
				}
			}))
			l.must(l.Start())
			seen := func() bool {
				alive := map[string]int{}
				for _, e := range l.Events(time.Time{}) {
					if e.Report == nil && e.Metrics == nil {
						alive[e.Node] = len(e.Alive)
					}
				}
				for i, h := range l.Nodes {
					if alive[h.Name] < tc.alive[i] {
						return false
					}
				}
				return true
			}
			for _, a := range []netip.Addr{vip4, vip6} {
				host := l.announcer(a)
				l.eventually("the nodes see each other", seen)
				host.Kill()
				l.eventually("another node answers", func() bool {
					macs := l.ask(a)
					return len(macs) == 1 && macs[0] != host.MAC
				})
				l.must(host.Start())
				l.announcer(a)
			}
		})
	}
}
