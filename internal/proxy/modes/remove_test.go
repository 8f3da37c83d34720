// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// A mode's objects that go, or are made anew, refuse nobody meanwhile: a flood of
// SYN segments gets answers of endpoints or none, but no reset from the frontend.
func TestRemovalRefusesNobody(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	net := newNetwork(t)
	kinds := Kinds(Configs{})
	nstest.Listen(t)
	// Many rules, as what takes them out of use in turn takes its time.
	want := desired()
	for i := range 60 {
		var endpoints []netip.AddrPort
		for j := range i + 1 {
			endpoints = append(endpoints, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, byte(100 + j)}), 80))
		}
		serve(want, fmt.Sprintf("other-%d", i), model.Key{Addr: netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), Port: 80, Protocol: model.TCP}, endpoints...)
	}
	for _, mode := range []Mode{NFTables, IPTables, Userspace} { // and ipvs in its own package, by its tables
		t.Run(string(mode), func(t *testing.T) {
			for range 3 {
				// What an agent that was killed left is taken over by the next.
				if err := inUseFor(t, kinds, mode, want).Close(); err != nil {
					t.Fatal(err)
				}
				f := net.clients["client"].StartFlood(t, netip.MustParseAddr("192.0.2.100"), netip.MustParseAddrPort(frontend))
				next := inUseFor(t, kinds, mode, want)
				f.More(t)
				if err := errors.Join(next.Cleanup(t.Context()), next.Close()); err != nil {
					t.Fatal(err)
				}
				f.More(t)
				if sent, refused := f.End(); refused > 0 {
					t.Errorf("%d of %d segments were refused", refused, sent)
				}
			}
		})
	}
}
