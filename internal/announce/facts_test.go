// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestFacts(t *testing.T) {
	lan := fact{
		Interface: elect.Interface{Name: "eth0", Up: true, Default4: true, Subnets: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64"),
			netip.MustParsePrefix("198.51.100.128/25"), netip.MustParsePrefix("2001:db8::7/128"), netip.MustParsePrefix("0.0.0.0/0"),
		}},
		MAC:   wire.MAC{2, 0, 0, 0, 0, 1},
		Ports: []wire.MAC{{2, 0, 0, 0, 0, 7}, {2, 0, 0, 0, 0, 8}},
	}
	for _, f := range []facts{
		{Links: []fact{}},
		{InSync: true, Links: []fact{lan}},
		{Starting: true, Links: []fact{lan}},
		{Leaving: true, Links: []fact{lan, {Interface: elect.Interface{Name: "bond0.100", Default6: true}}}},
	} {
		b, whole := f.encode()
		got, ok := decodeFacts(b)
		if !ok || !whole {
			t.Fatalf("%+v: whole %v, decoded %v", f, whole, ok)
		}
		if diff := cmp.Diff(f, got, prefixes); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for n := range b {
			if f, ok := decodeFacts(b[:n]); ok && n != 2 && len(f.Links) != 1 {
				t.Errorf("accepted the first %d of %d bytes as %+v", n, len(b), f)
			}
		}
	}
}

func TestFactsThatDoNotFit(t *testing.T) {
	f := facts{InSync: true}
	for i := range 5000 {
		f.Links = append(f.Links, fact{Interface: elect.Interface{Name: fmt.Sprintf("interface-%d", i)}})
	}
	b, whole := f.encode()
	got, ok := decodeFacts(b)
	if whole || !ok || len(b) > members.MaxFacts || len(got.Links) == 0 || !got.InSync {
		t.Errorf("%d bytes, whole %v, decoded %v with %d interfaces", len(b), whole, ok, len(got.Links))
	}
	f.Links = f.Links[:1000] // more than any node has, and they fit
	b, whole = f.encode()
	if got, ok := decodeFacts(b); !whole || !ok || len(got.Links) != 1000 {
		t.Errorf("%d bytes, whole %v, decoded %v with %d interfaces", len(b), whole, ok, len(got.Links))
	}
	b = f.encodeOld()
	if got, ok := decodeFacts(b); !ok || len(b) > members.MaxOldFacts || len(got.Links) == 0 {
		t.Errorf("for former versions: %d bytes, decoded %v with %d interfaces", len(b), ok, len(got.Links))
	}
}

func FuzzDecodeFacts(f *testing.F) {
	b, _ := facts{InSync: true, Links: []fact{{Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/23")}}}}}.encode()
	f.Add(b)
	f.Add([]byte{factsVersion, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := decodeFacts(b)
		if !ok {
			return
		}
		again, _ := got.encodeAs(b[0], members.MaxFacts)
		if len(again) > len(b) {
			t.Fatalf("%x became longer: %x", b, again)
		}
		if second, ok := decodeFacts(again); !ok || cmp.Diff(got, second, prefixes) != "" && bytes.Equal(b, again) {
			t.Fatalf("%+v became %+v", got, second)
		}
	})
}

func TestRelevant(t *testing.T) {
	subnet := netip.MustParsePrefix("192.0.2.0/24")
	links := []link{
		{Index: 2, Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{subnet, netip.MustParsePrefix("198.51.100.0/24")}}},
		{Index: 3, Interface: elect.Interface{Name: "eth1", Up: true, Default4: true, Subnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}},
		{Index: 4, Interface: elect.Interface{Name: "veth7", Up: true}},
	}
	a := elect.Address{Addr: netip.MustParseAddr("192.0.2.200"), Pool: &elect.Pool{}}
	got := relevant(links, []elect.Address{a})
	want := []link{{Index: 2, Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{subnet}}}}
	if diff := cmp.Diff(want, got, prefixes); diff != "" {
		t.Errorf("by subnet (-want +got):\n%s", diff)
	}
	far := elect.Address{Addr: netip.MustParseAddr("192.0.3.7"), Pool: &elect.Pool{}}
	if got := relevant(links, []elect.Address{far}); len(got) != 1 || got[0].Name != "eth1" || len(got[0].Subnets) != 0 {
		t.Errorf("by default route: %+v", got)
	}
	pattern := elect.Address{Addr: netip.MustParseAddr("192.0.2.200"), Pool: &elect.Pool{Interfaces: []string{"veth*"}}}
	if got := relevant(links, []elect.Address{pattern}); len(got) != 1 || got[0].Name != "veth7" {
		t.Errorf("by pattern: %+v", got)
	}
	if got := relevant(links, nil); len(got) != 0 || got == nil {
		t.Errorf("without addresses: %+v", got)
	}
	if len(links[0].Subnets) != 2 {
		t.Error("the argument was changed")
	}
}

// TestWatch: all peers in a small cluster, else the announcers that this node
// would succeed.
func TestWatch(t *testing.T) {
	s, err := New(Config{Node: "node-0", Gossip: netip.MustParseAddrPort("192.0.2.11:0")})
	if err != nil {
		t.Fatal(err)
	}
	l := &s.loop
	l.snap = &Snapshot{}
	for i := range 3 {
		l.snap.Nodes = append(l.snap.Nodes, Node{Name: fmt.Sprintf("node-%d", i)})
	}
	if diff := cmp.Diff([]string{"node-1", "node-2"}, l.watch(nil)); diff != "" {
		t.Errorf("small (-want +got):\n%s", diff)
	}
	for i := 3; i < 50; i++ {
		l.snap.Nodes = append(l.snap.Nodes, Node{Name: fmt.Sprintf("node-%d", i)})
	}
	results := []elect.Result{
		{Announcer: "node-7", Ranks: []string{"node-7", "node-0", "node-9"}},
		{Announcer: "node-8", Ranks: []string{"node-8", "node-9", "node-0"}},
		{Announcer: "node-8", Ranks: []string{"node-8", "node-0", "node-9"}},
		{Announcer: "node-9", Ranks: []string{"node-9", "node-7", "node-8", "node-0"}}, // third in line
		{Announcer: "node-0", Ranks: []string{"node-0", "node-7"}},
	}
	if diff := cmp.Diff([]string{"node-8", "node-7"}, l.watch(results)); diff != "" {
		t.Errorf("large (-want +got):\n%s", diff)
	}
}
