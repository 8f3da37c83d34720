// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"net/netip"
	"testing"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Tables that are made anew, as by every agent that starts, and that go, refuse
// nobody meanwhile. That needs no IPVS: they refuse before it.
func TestTablesThatGoRefuseNobody(t *testing.T) {
	nstest.Require(t, "ip")
	nstest.Listen(t)
	node, client := nstest.Self(t), nstest.NewNS(t)
	nstest.Cable(t, node, "eth0", client, "eth0")
	node.Address(t, "eth0", netip.MustParsePrefix("192.0.2.11/24"))
	client.Address(t, "eth0", netip.MustParsePrefix("192.0.2.100/24"))
	at := netip.MustParseAddrPort("10.96.0.10:80")
	client.Route(t, netip.PrefixFrom(at.Addr(), 32), netip.MustParseAddr("192.0.2.11"), "eth0")
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tables := newTables(conn, model.Families[:])
	dialled := elements.FrontendKey(model.Key{Addr: at.Addr(), Port: at.Port(), Protocol: model.TCP})
	edits := []edit{
		{Key: elementID{Family: model.IPv4, Set: setServices, Key: dialled}, New: markBase.data(), Has: true},
		{Key: elementID{Family: model.IPv4, Set: setAddresses, Key: string(at.Addr().AsSlice())}, Has: true},
	}
	commit := func(rebuild []nft.Table) {
		t.Helper()
		if err := tables.commit(&model.Node{Name: "node-1"}, rebuild, edits); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		commit(tablesFor(tables.families))
		f := client.StartFlood(t, netip.MustParseAddr("192.0.2.100"), at)
		commit(tablesFor(tables.families))
		f.More(t)
		if err := tables.remove(); err != nil {
			t.Fatal(err)
		}
		f.More(t)
		if sent, refused := f.End(); refused > 0 {
			t.Errorf("%d of %d segments were refused", refused, sent)
		}
	}
}
