// SPDX-License-Identifier: Apache-2.0

package elect

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var lan = []Interface{{Name: "eth0", Up: true, Subnets: []netip.Prefix{
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64"),
}}}

func node(name string) Node {
	return Node{Name: name, Alive: true, InSync: true, Interfaces: lan}
}

func cluster(n int) []Node {
	var out []Node
	for i := range n {
		out = append(out, node(fmt.Sprintf("node-%d", i+1)))
	}
	return out
}

func addresses(n int, pool *Pool) []Address {
	var out []Address
	first := netip.MustParseAddr("2001:db8:0:1::200").As16()
	for i := range n {
		first[14], first[15] = byte((0x200+i)>>8), byte(i)
		out = append(out, Address{Addr: netip.AddrFrom16(first), Pool: pool})
	}
	return out
}

func loads(results []Result) map[string]int {
	out := map[string]int{}
	for _, r := range results {
		out[r.Announcer]++
	}
	return out
}

func TestEligibility(t *testing.T) {
	down := []Interface{{Name: "eth0", Subnets: lan[0].Subnets}}
	routed := []Interface{{Name: "eth0", Up: true, Subnets: lan[0].Subnets}, {Name: "wan0", Up: true, Default4: true}}
	other := netip.MustParseAddr("198.51.100.7")
	tests := []struct {
		name   string
		node   func(*Node)
		addr   func(*Address)
		reason Reason
		soft   []Reason
		on     []int
	}{
		{name: "eligible", on: []int{0}},
		{name: "dead", node: func(n *Node) { n.Alive = false }, reason: NotAlive, on: []int{0}},
		{name: "leaving", node: func(n *Node) { n.Leaving = true }, reason: Leaving, on: []int{0}},
		{name: "excluded", node: func(n *Node) { n.Excluded = true }, reason: Excluded, on: []int{0}},
		{name: "excluded, and the pool ignores that", node: func(n *Node) { n.Excluded = true }, addr: func(a *Address) {
			a.Pool = &Pool{IgnoreExcludeLabel: true}
		}, on: []int{0}},
		{name: "not programmed yet", node: func(n *Node) { n.Starting = true }, reason: NotProgrammed, on: []int{0}},
		{name: "cordoned", node: func(n *Node) { n.Cordoned = true }, soft: []Reason{Cordoned}, on: []int{0}},
		{name: "about to be deleted", node: func(n *Node) { n.Deleting = true }, soft: []Reason{Deleting}, on: []int{0}},
		{name: "out of sync", node: func(n *Node) { n.InSync = false }, soft: []Reason{OutOfSync}, on: []int{0}},
		{name: "without network", node: func(n *Node) { n.NoNetwork = true }, soft: []Reason{NoNetwork}, on: []int{0}},
		{name: "drained, and about to be deleted", node: func(n *Node) { n.Cordoned, n.Deleting = true, true }, soft: []Reason{Deleting, Cordoned}, on: []int{0}},
		{name: "cordoned, with the only endpoint of policy Local", node: func(n *Node) { n.Cordoned = true }, addr: func(a *Address) {
			a.Local = map[string]bool{"node-1": true}
		}, soft: []Reason{Cordoned}, on: []int{0}},
		{name: "not selected", addr: func(a *Address) {
			a.Pool = &Pool{Selects: func(l map[string]string) bool { return l["rack"] == "a" }}
		}, reason: NotSelected, on: []int{0}},
		{name: "selected", node: func(n *Node) { n.Labels = map[string]string{"rack": "a"} }, addr: func(a *Address) {
			a.Pool = &Pool{Selects: func(l map[string]string) bool { return l["rack"] == "a" }}
		}, on: []int{0}},
		{name: "policy Local, endpoint elsewhere", addr: func(a *Address) { a.Local = map[string]bool{"node-2": true} }, reason: NoEndpoint, on: []int{0}},
		{name: "policy Local, endpoint here", addr: func(a *Address) { a.Local = map[string]bool{"node-1": true} }, on: []int{0}},
		{name: "policy Local, no endpoint at all", addr: func(a *Address) { a.Local = map[string]bool{} }, reason: NoEndpoint, on: []int{0}},
		{name: "link down", node: func(n *Node) { n.Interfaces = down }, reason: LinkDown, on: []int{0}},
		{name: "deaf", node: func(n *Node) {
			n.Interfaces = []Interface{{Name: "eth0", Up: true, Subnets: lan[0].Subnets, Reception: Deaf}}
		}, reason: NotReceiving, on: []int{0}},
		{name: "silent, which may be the others' doing", node: func(n *Node) {
			n.Interfaces = []Interface{{Name: "eth0", Up: true, Subnets: lan[0].Subnets, Reception: Silent}}
		}, on: []int{0}},
		{name: "pattern matches", addr: func(a *Address) { a.Addr, a.Pool = other, &Pool{Interfaces: []string{"bond*", "eth?"}} }, on: []int{0}},
		{name: "pattern does not match", addr: func(a *Address) { a.Pool = &Pool{Interfaces: []string{"bond*"}} }, reason: NoInterface},
		{name: "outside every subnet", addr: func(a *Address) { a.Addr = other }, reason: NoSubnet},
		{name: "outside every subnet, default route", node: func(n *Node) { n.Interfaces = routed }, addr: func(a *Address) { a.Addr = other }, on: []int{1}},
		{name: "subnet goes before default route", node: func(n *Node) { n.Interfaces = routed }, on: []int{0}},
		{name: "default route of the other family", node: func(n *Node) { n.Interfaces = routed }, addr: func(a *Address) { a.Addr = netip.MustParseAddr("2001:db8:9::1") }, reason: NoSubnet},
		{name: "has not told its interfaces", node: func(n *Node) { n.Interfaces = nil }, reason: NotYetReporting},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, a := node("node-1"), Address{Addr: netip.MustParseAddr("192.0.2.200"), Pool: &Pool{}}
			if tc.node != nil {
				tc.node(&n)
			}
			if tc.addr != nil {
				tc.addr(&a)
			}
			if got := Eligibility(&n, &a); got != tc.reason {
				t.Errorf("Eligibility = %q, want %q", got, tc.reason)
			}
			if diff := cmp.Diff(tc.soft, Graded(&n).Reasons()); diff != "" {
				t.Errorf("soft reasons (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.on, On(&a, n.Interfaces)); diff != "" {
				t.Errorf("On (-want +got):\n%s", diff)
			}
			got := Elect([]Node{n}, []Address{a})[0].Announcer
			if want := map[bool]string{true: "node-1"}[tc.reason == Eligible]; got != want {
				t.Errorf("announcer %q, want %q", got, want)
			}
		})
	}
}

// TestMarkDeaf: a silent interface is deaf only where another node that is alive hears.
func TestMarkDeaf(t *testing.T) {
	far := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	for _, tc := range []struct {
		name  string
		other Node
		want  Reception
	}{
		{"another hears", Node{Alive: true, Interfaces: []Interface{{Name: "lan0", Up: true, Subnets: lan[0].Subnets, Reception: Hearing}}}, Deaf},
		{"another is silent too", Node{Alive: true, Interfaces: []Interface{{Name: "lan0", Up: true, Subnets: lan[0].Subnets, Reception: Silent}}}, Silent},
		{"another does not know", Node{Alive: true, Interfaces: []Interface{{Name: "lan0", Up: true, Subnets: lan[0].Subnets}}}, Silent},
		{"another heard, and is dead", Node{Interfaces: []Interface{{Name: "lan0", Up: true, Subnets: lan[0].Subnets, Reception: Hearing}}}, Silent},
		{"another's link is down", Node{Alive: true, Interfaces: []Interface{{Name: "lan0", Subnets: lan[0].Subnets, Reception: Hearing}}}, Silent},
		{"another hears elsewhere", Node{Alive: true, Interfaces: []Interface{{Name: "lan0", Up: true, Subnets: far, Reception: Hearing}}}, Silent},
		{"no other", Node{}, Silent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.other.Name = "node-2"
			silent := Node{Name: "node-1", Alive: true, Interfaces: []Interface{{Name: "eth0", Up: true, Subnets: lan[0].Subnets, Reception: Silent}}}
			nodes := []Node{silent, tc.other}
			MarkDeaf(nodes)
			if got := nodes[0].Interfaces[0].Reception; got != tc.want {
				t.Errorf("reception %d, want %d", got, tc.want)
			}
		})
	}
}

// TestOrderIsIrrelevant shuffles nodes and addresses, with pools and policies
// that make the eligible sets differ.
func TestOrderIsIrrelevant(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 1))
		nodes := cluster(1 + rng.IntN(9))
		addrs := addresses(rng.IntN(120), &Pool{})
		picky := &Pool{Selects: func(l map[string]string) bool { return l["odd"] == "yes" }}
		for i := range nodes {
			nodes[i].Labels = map[string]string{"odd": []string{"yes", "no"}[rng.IntN(2)]}
			nodes[i].Alive = rng.IntN(5) > 0
			soften(rng, &nodes[i])
		}
		for i := range addrs {
			if rng.IntN(3) == 0 {
				addrs[i].Pool = picky
			}
			if rng.IntN(4) == 0 {
				addrs[i].Local = map[string]bool{nodes[rng.IntN(len(nodes))].Name: true}
			}
		}
		want := byAddress(addrs, Elect(nodes, addrs))
		for range 5 {
			rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			rng.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
			if diff := cmp.Diff(want, byAddress(addrs, Elect(nodes, addrs))); diff != "" {
				t.Fatalf("seed %d: order changed the result (-want +got):\n%s", seed, diff)
			}
		}
		for i, r := range Elect(nodes, addrs) {
			checkResult(t, nodes, &addrs[i], r)
		}
	}
}

// soften returns a node soft reasons, sometimes.
func soften(rng *rand.Rand, n *Node) {
	n.Cordoned, n.Deleting, n.InSync, n.NoNetwork = rng.IntN(3) == 0, rng.IntN(5) == 0, rng.IntN(5) > 0, rng.IntN(6) == 0
}

// TestGrades walks down from the node that nothing speaks against to the one
// that is worst off: each announces as soon as those before it cannot, and all of
// one grade share alike.
func TestGrades(t *testing.T) {
	worse := []func(n *Node){
		func(*Node) {},
		func(n *Node) { n.Cordoned = true },
		func(n *Node) { n.Deleting = true },
		func(n *Node) { n.Deleting, n.Cordoned = true, true },
		func(n *Node) { n.InSync = false },
		func(n *Node) { n.InSync, n.Cordoned, n.Deleting = false, true, true },
		func(n *Node) { n.NoNetwork = true },
		func(n *Node) { n.NoNetwork, n.InSync = true, false },
	}
	nodes := cluster(2 * len(worse)) // two of each grade
	for i := range nodes {
		worse[i/2](&nodes[i])
	}
	addrs := addresses(100, &Pool{})
	for g := range worse {
		for _, lone := range []bool{false, true} {
			first := 2 * g
			if lone {
				first++
			}
			left := nodes[first:]
			got := loads(Elect(left, addrs))
			want := map[string]bool{nodes[2*g+1].Name: true}
			if !lone {
				want[nodes[2*g].Name] = true
			}
			for name, load := range got {
				if !want[name] || !lone && load > 75 {
					t.Errorf("from grade %d on: %s announces %d, want only %v to, at most 75 each of two", g, name, load, want)
				}
			}
			if len(got) != len(want) {
				t.Errorf("from grade %d on: %v announce, want %v", g, got, want)
			}
		}
	}
}

func byAddress(addrs []Address, results []Result) map[string]Result {
	out := map[string]Result{}
	for i, r := range results {
		out[addrs[i].Addr.String()] = r
	}
	return out
}

// checkResult holds a result against Eligibility and Outranks.
func checkResult(t *testing.T, nodes []Node, a *Address, r Result) {
	t.Helper()
	var eligible []string
	for i := range nodes {
		if Eligibility(&nodes[i], a) == Eligible {
			eligible = append(eligible, nodes[i].Name)
		}
	}
	ranks := slices.Clone(r.Ranks)
	slices.Sort(eligible)
	slices.Sort(ranks)
	if diff := cmp.Diff(eligible, ranks); diff != "" {
		t.Fatalf("%v: ranked nodes are not the eligible ones (-want +got):\n%s", a.Addr, diff)
	}
	if (r.Announcer == "") != (len(eligible) == 0) || (r.Announcer != "" && r.Rank(r.Announcer) != 0) {
		t.Fatalf("%v: announcer %q of %v", a.Addr, r.Announcer, r.Ranks)
	}
	grades := map[string]Grade{}
	for i := range nodes {
		grades[nodes[i].Name] = Graded(&nodes[i])
	}
	for i := 1; i < len(r.Ranks); i++ {
		before, after := r.Ranks[i-1], r.Ranks[i]
		if r.Grade(after) != grades[after] || r.Preferred(after) != (grades[after] == grades[r.Announcer]) {
			t.Fatalf("%v: %s has grade %d, preferred %v; want %d", a.Addr, after, r.Grade(after), r.Preferred(after), grades[after])
		}
		if grades[before] > grades[after] || grades[before] == grades[after] && i > 1 && !Outranks(a.Addr, before, after) {
			t.Fatalf("%v: successors out of order: %v, grades %v", a.Addr, r.Ranks, grades)
		}
	}
	if r.Preferred("another") || r.Announcer != "" && (r.Grade(r.Announcer) != grades[r.Announcer] || !r.Preferred(r.Announcer)) {
		t.Fatalf("%v: the announcer has grade %d, want %d", a.Addr, r.Grade(r.Announcer), grades[r.Announcer])
	}
}

func TestEvenness(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 10, 50} {
		for _, count := range []int{1, 3, 10, 51, 250, 2000} {
			bound := int(LoadFactor*float64(count)/float64(n)) + 1
			for name, load := range loads(Elect(cluster(n), addresses(count, &Pool{}))) {
				if load > bound {
					t.Errorf("%d addresses over %d nodes: %s has %d, bound %d", count, n, name, load, bound)
				}
			}
		}
	}
}

// TestMinimalMovement takes nodes away and adds them: beside the addresses that
// have to move, only those that a changed bound displaces may.
func TestMinimalMovement(t *testing.T) {
	for _, n := range []int{3, 5, 10, 20} {
		const count = 1000
		addrs := addresses(count, &Pool{})
		nodes := cluster(n)
		before := Elect(nodes, addrs)
		extra, orphans := 0, 0
		for gone := range nodes {
			left := slices.Delete(slices.Clone(nodes), gone, gone+1)
			for i, r := range Elect(left, addrs) {
				switch {
				case before[i].Announcer == nodes[gone].Name:
					orphans++
				case r.Announcer != before[i].Announcer:
					extra++
				}
			}
		}
		if orphans != count {
			t.Fatalf("%d nodes: %d orphans, want every address once", n, orphans)
		}
		if limit := count * 2 / 100; extra > limit {
			t.Errorf("%d nodes: %d addresses of healthy nodes moved for %d orphans, want at most %d", n, extra, orphans, limit)
		}
	}
}

// TestNewAddressMovesFew adds addresses one by one.
func TestNewAddressMovesFew(t *testing.T) {
	nodes, addrs, moved := cluster(5), addresses(300, &Pool{}), 0
	before := Elect(nodes, addrs[:1])
	for k := 2; k <= len(addrs); k++ {
		after := Elect(nodes, addrs[:k])
		for i := range before {
			if before[i].Announcer != after[i].Announcer {
				moved++
			}
		}
		before = after
	}
	if moved > 30 {
		t.Errorf("%d addresses moved while 300 were added, want at most 30", moved)
	}
}

func TestArgumentsAreNotChanged(t *testing.T) {
	nodes, addrs := cluster(4), addresses(20, &Pool{})
	wantNodes, names := slices.Clone(nodes), []string{}
	Elect(nodes, addrs)
	for i := range nodes {
		names = append(names, nodes[i].Name)
		if nodes[i].Name != wantNodes[i].Name {
			t.Errorf("node %d became %s", i, nodes[i].Name)
		}
	}
	if len(names) != 4 || len(addrs) != 20 {
		t.Error("arguments changed")
	}
}

func TestOutranksIsTotal(t *testing.T) {
	a := netip.MustParseAddr("192.0.2.200")
	for i := range 100 {
		x, y := fmt.Sprintf("n%d", i), fmt.Sprintf("n%d", i+1)
		if Outranks(a, x, y) == Outranks(a, y, x) {
			t.Fatalf("%s and %s: no order", x, y)
		}
	}
	if Outranks(a, "n1", "n1") {
		t.Error("a node outranks itself")
	}
}

// FuzzElect drives Elect with arbitrary eligibility.
func FuzzElect(f *testing.F) {
	f.Add(uint64(1), uint8(3), uint8(10))
	f.Fuzz(func(t *testing.T, seed uint64, n, count uint8) {
		rng := rand.New(rand.NewPCG(seed, 2))
		nodes, addrs := cluster(int(n%16)), addresses(int(count), &Pool{})
		for i := range addrs {
			addrs[i].Local = map[string]bool{}
			for j := range nodes {
				addrs[i].Local[nodes[j].Name] = rng.IntN(2) == 0
			}
		}
		for j := range nodes {
			soften(rng, &nodes[j])
		}
		for i, r := range Elect(nodes, addrs) {
			checkResult(t, nodes, &addrs[i], r)
		}
	})
}

func BenchmarkElect(b *testing.B) {
	nodes, addrs := cluster(20), addresses(2000, &Pool{})
	for b.Loop() {
		Elect(nodes, addrs)
	}
}

// TestSubnetGoesBeforeDefaultRoute: nodes in the address's subnet announce it, and
// those in another only if none of these can.
func TestSubnetGoesBeforeDefaultRoute(t *testing.T) {
	nodes := cluster(4)
	for i := range nodes[2:] {
		nodes[2+i].Interfaces = []Interface{{Name: "eth0", Up: true, Default4: true, Default6: true, Subnets: []netip.Prefix{
			netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:0:2::/64"),
		}}}
	}
	var addrs []Address
	for i := range 40 {
		addrs = append(addrs, Address{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), Pool: &Pool{}})
	}
	addrs = append(addrs, addresses(40, &Pool{})...)
	check := func(want ...string) {
		t.Helper()
		for name, load := range loads(Elect(nodes, addrs)) {
			if bound := int(LoadFactor*float64(len(addrs))/float64(len(want))) + 1; !slices.Contains(want, name) || load > bound {
				t.Errorf("%s announces %d, want only %v to, each %d at most", name, load, want, bound)
			}
		}
	}
	check("node-1", "node-2")
	nodes[1].Cordoned = true
	check("node-1")
	nodes[0].Alive = false
	check("node-2") // cordoned, but the only one on that LAN
	nodes[1].Alive = false
	check("node-3", "node-4")
}

// TestReserved: what is no host's in the subnet is not announced, whatever else
// there is.
func TestReserved(t *testing.T) {
	routed := node("routed")
	routed.Interfaces = []Interface{{Name: "eth0", Up: true, Default4: true, Default6: true}}
	for subnet, reserved := range map[string]map[string]bool{
		"192.0.2.0/24":      {"192.0.2.0": true, "192.0.2.255": true, "192.0.2.127": false, "192.0.2.1": false, "192.0.3.0": false},
		"192.0.2.128/25":    {"192.0.2.128": true, "192.0.2.255": true, "192.0.2.129": false, "192.0.2.254": false},
		"192.0.0.0/22":      {"192.0.0.255": false, "192.0.1.0": false, "192.0.3.255": true},
		"192.0.2.4/31":      {"192.0.2.4": false, "192.0.2.5": false},
		"255.255.255.0/24":  {"255.255.255.255": true},
		"2001:db8:0:1::/64": {"2001:db8:0:1::": true, "2001:db8:0:1::1": false, "2001:db8:0:1:ffff:ffff:ffff:ffff": false},
		"2001:db8::40/122":  {"2001:db8::40": true, "2001:db8::7f": false},
		"2001:db8::4/127":   {"2001:db8::4": false, "2001:db8::5": false},
	} {
		for addr, want := range reserved {
			for _, patterns := range [][]string{nil, {"eth*"}} {
				n := node("node-1")
				n.Interfaces = []Interface{{Name: "eth0", Up: true, Default4: true, Default6: true, Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}}}
				a := Address{Addr: netip.MustParseAddr(addr), Pool: &Pool{Interfaces: patterns}}
				if got := Eligibility(&n, &a); (got == Reserved) != want {
					t.Errorf("%s in %s: %q, reserved %v", addr, subnet, got, want)
				}
				if r := Elect([]Node{n, routed}, []Address{a})[0]; want && patterns == nil && r.Announcer != "" {
					t.Errorf("%s in %s: announced by %s, which is not in the subnet", addr, subnet, r.Announcer)
				}
			}
		}
	}
}
