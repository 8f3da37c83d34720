// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"os/exec"
	"testing"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestVersionsFollowEachOther: the agent of a former version finds the
// tables of this one, writes into them what it writes at its start, and this one
// takes them back. The kernel refuses to add a chain that is there at another
// priority; then open connections would break with the next move.
func TestVersionsFollowEachOther(t *testing.T) {
	nstest.Require(t, "nft")
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	moved := map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr("192.0.2.201"), model.IPv6: netip.MustParseAddr("2001:db8::201")}
	node := map[model.Family]netip.Addr{model.IPv4: netip.MustParseAddr("192.0.2.12"), model.IPv6: netip.MustParseAddr("2001:db8::12")}
	former := func() error {
		const prioMangle = -150
		var tx nft.Batch
		for _, fam := range model.Families {
			table := familyTable(fam, formerTable)
			addr := table.Family.AddrType()
			tx.AddTable(table)
			tx.AddSet(nft.Set{Table: table, Name: handoverFormer, Key: []nft.Type{addr}, Data: []nft.Type{addr}})
			tx.AddChain(nft.Chain{Table: table, Name: "prerouting", Hook: &nft.Hook{Type: "filter", Num: 0, Priority: prioMangle + 1}})
			tx.AddChain(nft.Chain{Table: table, Name: handoverPass})
			tx.FlushChain(table, "prerouting")
			tx.FlushChain(table, handoverPass)
			tx.AppendRule(table, handoverPass, limitHops(fam).Rule(""))
			tx.AppendRule(table, handoverPass, passOn(fam).Rule(""))
			for _, m := range unknownSegments(fam) {
				tx.AppendRule(table, "prerouting", m.Goto(handoverPass).Rule(""))
			}
			tx.FlushSet(table, handoverFormer)
			tx.AddElement(table, handoverFormer, handoverElement(moved[fam], node[fam]))

			table = familyTable(fam, resetTable)
			tx.AddTable(table)
			tx.AddSet(nft.Set{
				Table: table, Name: resetFlows, Key: []nft.Type{addr, nft.TypeService, addr, nft.TypeService},
				Dynamic: true, Timeout: resetTimeout, Size: resetSize,
			})
			for name, hook := range map[string]uint32{"prerouting": 0, "output": 3} {
				tx.AddChain(nft.Chain{Table: table, Name: name, Hook: &nft.Hook{Type: "filter", Num: hook, Priority: prioMangle}})
				tx.FlushChain(table, name)
				tx.AppendRule(table, name, resetRule(fam).Rule(""))
			}
		}
		return conn.Commit(&tx)
	}
	started := false // the former version, once
	table := func(fam model.Family) string {
		if fam == model.IPv6 {
			return "ip6"
		}
		return "ip"
	}
	present := func() error {
		s, err := OpenHandover()
		if err != nil {
			return err
		}
		defer s.Close()
		if started {
			for fam, addr := range moved {
				if got := s.Former(addr); got != node[fam] {
					t.Errorf("%s, which the former version passes on to %s, goes to %s", addr, node[fam], got)
				}
				if out, err := exec.Command("nft", "list", "table", table(fam), formerTable).CombinedOutput(); err == nil {
					t.Errorf("the former version's table is still there:\n%s", out)
				}
			}
		}
		if err := s.Pass(netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.11")); err != nil {
			return err
		}
		var r refuser
		defer r.close()
		for _, flow := range []Flow{
			{Source: ap("192.0.2.100:40000"), Destination: ap("192.0.2.200:80"), Endpoint: ap("10.244.1.2:80")},
			{Source: ap("[2001:db8::100]:40000"), Destination: ap("[2001:db8::200]:80"), Endpoint: ap("[fd00::2]:80")},
		} {
			if err := r.refuse([]conntrack.Entry{{Flow: flow, Protocol: uint8(model.TCP)}}); err != nil {
				return err
			}
		}
		return nil
	}
	for i := range 2 {
		for _, version := range []struct {
			name  string
			start func() error
		}{{"present", present}, {"former", former}} {
			if err := version.start(); err != nil {
				t.Fatalf("round %d, the %s version: %v", i+1, version.name, err)
			}
			started = true
		}
	}
	if err := present(); err != nil {
		t.Fatal(err)
	}
}
