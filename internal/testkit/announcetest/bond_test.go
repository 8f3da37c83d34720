// SPDX-License-Identifier: Apache-2.0

package announcetest_test

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// handover is how long a planned move may take in an emulated machine. One that
// waits for a conflict to be over takes longer.
const handover = 4 * time.Second

// TestBondThatRewrites: a bond in mode balance-alb puts the hardware address of one
// of its ports in the ARP replies that it sends. The nodes know each other all the
// same: no node is taken for a conflicting host, and an address moves immediately.
func TestBondThatRewrites(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") != "1" {
		t.Skip("network namespaces need root; set REQUIRE_KERNEL=1 to fail instead")
	}
	for _, a := range addresses {
		l, err := announcetest.New(announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}, Management: true, Log: os.Getenv("ANNOUNCE_LOG") != ""})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.Close)
		must := func(err error) {
			t.Helper()
			if errors.Is(err, unix.EOPNOTSUPP) {
				nstest.LeaveToVM(t, "this kernel has no such interface")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		ports := map[wire.MAC]*announcetest.Host{}
		for _, h := range l.Nodes {
			must(h.Attach("eth9"))
			for _, port := range []string{"eth0", "eth9"} {
				mac, err := h.Net.MAC(port)
				must(err)
				ports[wire.MAC(mac)] = h
			}
			bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: on})
			bond.Mode, bond.Miimon = netlink.BOND_MODE_BALANCE_ALB, 20
			must(add(h.Net, bond))
			must(errors.Join(enslave(h.Net, "eth0", on), enslave(h.Net, "eth9", on)))
		}
		asker, err := announcetest.NewAsker(l.Client)
		must(err)
		t.Cleanup(asker.Close)
		must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"lan?"} }))
		must(l.Start())
		// announcer waits until one node other than those answers for a, and alone.
		announcer := func(but ...*announcetest.Host) *announcetest.Host {
			t.Helper()
			for start := time.Now(); time.Since(start) < 20*time.Second; {
				macs, err := asker.Ask(a, 100*time.Millisecond)
				must(err)
				if len(macs) != 1 || ports[macs[0]] == nil || slices.Contains(but, ports[macs[0]]) {
					continue
				}
				if h := ports[macs[0]]; l.Last(a)[h.Name].State == announce.Announced {
					return h
				}
			}
			t.Fatalf("%v: nobody announces: %+v", a, l.Last(a))
			return nil
		}
		first := announcer()
		for range 2 { // away, and back when the next one is out of sync
			at := time.Now()
			must(first.InSync(false))
			next := announcer(first)
			if took := time.Since(at); took > handover {
				t.Errorf("%v: moved after %v", a, took)
			}
			testkit.EventuallyTrue(t, 20*time.Second, "the former announcer has released it", func() bool {
				return l.Last(a)[first.Name].State == announce.Released
			})
			must(first.InSync(true)) // a move of its own, not one in the middle of another
			first = next
		}
		at := time.Now()
		first.Stop()
		announcer(first)
		if took := time.Since(at); took > handover {
			t.Errorf("%v: taken over %v after the agent was told to stop", a, took)
		}
		for _, e := range l.Events(time.Time{}) {
			if e.Report != nil && !e.Report.ConflictingHost.IsZero() {
				t.Errorf("%v: %s takes %v for a stranger's", a, e.Node, e.Report.ConflictingHost)
			}
		}
		l.Close()
	}
}
