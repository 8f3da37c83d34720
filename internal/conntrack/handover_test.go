// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestHandoverOutlivesProcessAndTable: what is passed on outlives the process, and the table of somebody
// who has deleted it.
func TestHandoverOutlivesProcessAndTable(t *testing.T) {
	nstest.Require(t, "nft")
	open := func() *Handover {
		t.Helper()
		s, err := OpenHandover()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	pass := func(s *Handover, addr, node string) {
		t.Helper()
		to, _ := netip.ParseAddr(node)
		if err := s.Pass(netip.MustParseAddr(addr), to); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(family string, want ...string) {
		t.Helper()
		out, err := exec.Command("nft", "list", "map", family, handoverTable, handoverFormer).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := strings.Count(string(out), " : 192.") + strings.Count(string(out), " : 2001:"); got != len(want) {
			t.Errorf("%d elements, want %d:\n%s", got, len(want), out)
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				t.Errorf("no %q in:\n%s", w, out)
			}
		}
	}
	s := open()
	pass(s, "192.0.2.200", "192.0.2.11")
	pass(s, "192.0.2.201", "192.0.2.11")
	pass(s, "2001:db8::200", "2001:db8::11")
	pass(s, "192.0.2.200", "192.0.2.12")
	pass(s, "192.0.2.201", "")
	pass(s, "192.0.2.209", "") // was not
	expect("ip", "192.0.2.200 : 192.0.2.12")
	expect("ip6", "2001:db8::200 : 2001:db8::11")

	s = open()
	if got := s.Former(netip.MustParseAddr("192.0.2.200")); got != netip.MustParseAddr("192.0.2.12") || len(s.Addresses()) != 2 {
		t.Errorf("the next process has %v of %v", got, s.Addresses())
	}
	nstest.Run(t, "nft", "delete", "table", "ip", handoverTable)
	pass(s, "192.0.2.202", "192.0.2.13")
	expect("ip", "192.0.2.200 : 192.0.2.12", "192.0.2.202 : 192.0.2.13")

	if err := Cleanup(); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput(); strings.Contains(string(out), "causeway") {
		t.Errorf("left behind:\n%s", out)
	}
}
