// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
	"github.com/causeway-lb/causeway/internal/proxy/nstest"
)

// TestVersionsFollowEachOther: the agent of a former version finds the
// tables of this one, writes into them what it writes at its start, and this one
// takes them back. The kernel refuses to add a chain that is there at another
// priority; then open connections would break with the next move.
func TestVersionsFollowEachOther(t *testing.T) {
	nstest.Require(t, "nft")
	conn, err := nfnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	former := func() error {
		const prioMangle = -150
		var tx nfnl.Batch
		for _, fam := range model.Families {
			addr := typeOf(fam)
			table := familyTable(fam, strayTable)
			tx.AddTable(table)
			tx.AddSet(nfnl.Set{Table: table, Name: strayFormer, Key: []nfnl.Type{addr}, Data: []nfnl.Type{addr}})
			tx.AddChain(nfnl.Chain{Table: table, Name: "prerouting", Hook: &nfnl.Hook{Type: "filter", Num: 0, Priority: prioMangle + 1}})
			tx.AddChain(nfnl.Chain{Table: table, Name: strayPass})
			tx.FlushChain(table, "prerouting")
			tx.FlushChain(table, strayPass)
			tx.AppendRule(table, strayPass, nfnl.Rule{Exprs: strayShorten(fam)})
			tx.AppendRule(table, strayPass, nfnl.Rule{Exprs: strayDup(fam)})
			for _, m := range strays() {
				tx.AppendRule(table, "prerouting", nfnl.Rule{Exprs: append(m, &expr.Verdict{Kind: expr.VerdictGoto, Chain: strayPass})})
			}
			tx.FlushSet(table, strayFormer)

			table = familyTable(fam, resetTable)
			tx.AddTable(table)
			tx.AddSet(nfnl.Set{
				Table: table, Name: resetFlows, Key: []nfnl.Type{addr, nfnl.TypeService, addr, nfnl.TypeService},
				Dynamic: true, Timeout: resetTimeout, Size: resetSize,
			})
			for name, hook := range map[string]uint32{"prerouting": 0, "output": 3} {
				tx.AddChain(nfnl.Chain{Table: table, Name: name, Hook: &nfnl.Hook{Type: "filter", Num: hook, Priority: prioMangle}})
				tx.FlushChain(table, name)
				tx.AppendRule(table, name, nfnl.Rule{Exprs: resetRule(fam)})
			}
		}
		return conn.Commit(&tx)
	}
	present := func() error {
		s, err := OpenStrays()
		if err != nil {
			return err
		}
		defer s.Close()
		if err := s.Pass(netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.11")); err != nil {
			return err
		}
		var r refuser
		defer r.close()
		for fam, e := range map[model.Family]entry{
			model.IPv4: {proto: model.TCP, source: ap("192.0.2.100:40000"), destination: ap("192.0.2.200:80"), endpoint: ap("10.244.1.2:80")},
			model.IPv6: {proto: model.TCP, source: ap("[2001:db8::100]:40000"), destination: ap("[2001:db8::200]:80"), endpoint: ap("[fd00::2]:80")},
		} {
			if err := r.refuse(fam, []entry{e}); err != nil {
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
		}
	}
	if err := present(); err != nil {
		t.Fatal(err)
	}
}
