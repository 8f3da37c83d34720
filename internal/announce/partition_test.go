// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// TestPartitions parts five nodes into two and three and joins them again, and
// blocks gossip while the LAN works. Each time it comes to exactly one answer for
// every address, on either side.
func TestPartitions(t *testing.T) {
	for _, tc := range []struct {
		name            string
		management      bool
		apart, together func(h *announcetest.Host) error
		nodes           int // how many are moved
		far             bool
	}{
		{"two and three", false, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
		{"LAN alone, two and three", true, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
		{"gossip blocked", true, (*announcetest.Host).CutGossip, (*announcetest.Host).MendGossip, 5, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var addrs []netip.Addr
			for i := range 6 {
				addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::20%d", i)))
			}
			l := startLAN(t, announcetest.Options{Nodes: 5, Addresses: addrs, Management: tc.management, Partition: true})
			far, err := announcetest.NewAsker(l.Far)
			l.must(err)
			t.Cleanup(far.Close)
			for round := range 2 {
				for i := range tc.nodes {
					l.must(tc.apart(l.Nodes[(round+i)%len(l.Nodes)]))
				}
				l.settled(l.asker, addrs...)
				if tc.far {
					l.settled(far, addrs...)
				}
				for i := range tc.nodes {
					l.must(tc.together(l.Nodes[(round+i)%len(l.Nodes)]))
				}
				l.settled(l.asker, addrs...)
			}
		})
	}
}
