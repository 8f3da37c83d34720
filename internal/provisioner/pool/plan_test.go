// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// with changes a pool.
func with(p Pool, change func(*Pool)) Pool {
	change(&p)
	return p
}

func TestAllocate(t *testing.T) {
	gold := labels.SelectorFromSet(labels.Set{"tier": "gold"})
	for _, test := range []struct {
		name    string
		pools   []Pool
		records []Record
		exclude []Exclusion
		ports   map[string][]provisioner.Port
		req     provisioner.Request
		want    []string
		unmet   string // reason
		message string // part of it
	}{
		{name: "lowest address of the first range", pools: []Pool{pool("a", "192.0.2.50-192.0.2.60", "192.0.2.10-192.0.2.20")},
			req: request("web"), want: []string{"192.0.2.50"}},
		{name: "next range when the first is full", pools: []Pool{pool("a", "192.0.2.50/32", "192.0.2.10/32")},
			records: []Record{{Address: addr("192.0.2.50"), Pool: "a", Owners: []alloc.Owner{owner("x")}}},
			req:     request("web"), want: []string{"192.0.2.10"}},
		{name: "no pool at all", req: request("web"), unmet: provisioner.ReasonNoPool, message: "No LoadBalancerPool has IPv4 addresses: create one"},
		{name: "pool of the other family", pools: []Pool{pool("a", "2001:db8::/120")}, req: request("web"),
			unmet: provisioner.ReasonNoPool, message: "pool a has no IPv4 addresses"},
		{name: "pools that do not admit it say why", pools: []Pool{
			with(pool("a", "192.0.2.1/32"), func(p *Pool) { p.Disabled = true }),
			with(pool("b", "192.0.2.2/32"), func(p *Pool) { p.AutoAssign = false }),
			with(pool("c", "192.0.2.3/32"), func(p *Pool) { p.Namespaces = gold }),
			with(pool("d", "192.0.2.4/32"), func(p *Pool) { p.Services = gold })},
			req: request("web"), unmet: provisioner.ReasonNoPool,
			message: "pool c does not admit the Service by its namespaceSelector, d does not admit the Service by its serviceSelector, a is disabled, b has autoAssign: false"},
		{name: "selective pool goes before a general one", pools: []Pool{
			pool("a", "192.0.2.1/32"), with(pool("b", "192.0.2.2/32"), func(p *Pool) { p.Services = gold })},
			req: request("web", func(r *provisioner.Request) { r.Labels = map[string]string{"tier": "gold"} }), want: []string{"192.0.2.2"}},
		{name: "priority goes before selectors", pools: []Pool{
			with(pool("a", "192.0.2.1/32"), func(p *Pool) { p.Priority = 1 }), with(pool("b", "192.0.2.2/32"), func(p *Pool) { p.Services = gold })},
			req: request("web", func(r *provisioner.Request) { r.Labels = map[string]string{"tier": "gold"} }), want: []string{"192.0.2.1"}},
		{name: "named pool without auto-assignment", pools: []Pool{with(pool("a", "192.0.2.1/32"), func(p *Pool) { p.AutoAssign = false })},
			req: request("web", func(r *provisioner.Request) { r.Pool = "a" }), want: []string{"192.0.2.1"}},
		{name: "address of another pool than the one named", pools: []Pool{pool("a", "192.0.2.1/32"), pool("b", "192.0.2.2/32")},
			req: request("web", func(r *provisioner.Request) { r.Pool = "b"; r.Addresses = addrs("192.0.2.1") }), unmet: provisioner.ReasonInvalidRequest, message: "belongs to pool a"},
		{name: "excluded addresses are passed over", pools: []Pool{pool("a", "192.0.2.1-192.0.2.3")},
			exclude: []Exclusion{{Range: AddrRange(addr("192.0.2.1")), Why: "node n"}}, req: request("web"), want: []string{"192.0.2.2"}},
		{name: "excluded address asked for", pools: []Pool{pool("a", "192.0.2.1-192.0.2.3")},
			exclude: []Exclusion{{Range: AddrRange(addr("192.0.2.1")), Why: "node n"}},
			req:     request("web", func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.1") }), unmet: provisioner.ReasonAddressNotAllowed, message: "belongs to node n too"},
		{name: "all requested addresses or none", pools: []Pool{pool("a", "192.0.2.1-192.0.2.3")},
			records: []Record{{Address: addr("192.0.2.2"), Pool: "a", Owners: []alloc.Owner{owner("x")}}},
			req:     request("web", func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.1", "192.0.2.2") }), unmet: provisioner.ReasonAddressInUse, message: "held by Service ns/x"},
		{name: "requested address of one family, the other chosen", pools: []Pool{pool("a", "192.0.2.0/24", "2001:db8::1-2001:db8::9")},
			req:  request("web", dual(corev1.IPFamilyPolicyRequireDualStack), func(r *provisioner.Request) { r.Addresses = addrs("2001:db8::5") }),
			want: []string{"2001:db8::5", "192.0.2.1"}},
		{name: "require dual stack: nothing is taken of one family", pools: []Pool{pool("a", "192.0.2.0/24")},
			req: request("web", dual(corev1.IPFamilyPolicyRequireDualStack)), unmet: provisioner.ReasonNoPool, message: "IPv6"},
		{name: "prefer dual stack: what there is", pools: []Pool{pool("a", "192.0.2.0/24")},
			req: request("web", dual(corev1.IPFamilyPolicyPreferDualStack)), want: []string{"192.0.2.1"}, unmet: provisioner.ReasonNoPool, message: "IPv6"},
		{name: "prefer dual stack with an address asked for", pools: []Pool{pool("a", "192.0.2.0/24")},
			req:  request("web", dual(corev1.IPFamilyPolicyPreferDualStack), func(r *provisioner.Request) { r.Addresses = addrs("192.0.2.9") }),
			want: []string{"192.0.2.9"}, unmet: provisioner.ReasonNoPool, message: "IPv6"},
		{name: "prefer dual stack with an address that cannot be had: nothing", pools: []Pool{pool("a", "192.0.2.0/24")},
			req:   request("web", dual(corev1.IPFamilyPolicyPreferDualStack), func(r *provisioner.Request) { r.Addresses = addrs("2001:db8::9") }),
			unmet: provisioner.ReasonOutsidePools, message: "2001:db8::9 is in no LoadBalancerPool"},
		{name: "two pools when none has both families", pools: []Pool{pool("a", "192.0.2.7/32"), pool("b", "2001:db8::7/128")},
			req: request("web", dual(corev1.IPFamilyPolicyRequireDualStack)), want: []string{"192.0.2.7", "2001:db8::7"}},
		{name: "second family from the pool of the first", pools: []Pool{
			with(pool("a", "2001:db8:a::/120"), func(p *Pool) { p.Priority = 9 }), pool("b", "192.0.2.7/32", "2001:db8:b::/120")},
			records: []Record{{Address: addr("192.0.2.7"), Pool: "b", Owners: []alloc.Owner{owner("web")}}},
			req:     request("web", dual(corev1.IPFamilyPolicyRequireDualStack)), want: []string{"192.0.2.7", "2001:db8:b::1"}},
		{name: "held address stays though its pool is gone", pools: []Pool{pool("b", "198.51.100.0/24")},
			records: []Record{{Address: addr("192.0.2.7"), Pool: "a", Owners: []alloc.Owner{owner("web")}}},
			req:     request("web"), want: []string{"192.0.2.7"}},
		{name: "held address stays though its pool admits it no longer", pools: []Pool{with(pool("a", "192.0.2.0/24"), func(p *Pool) { p.Services = gold })},
			records: []Record{{Address: addr("192.0.2.7"), Pool: "a", Owners: []alloc.Owner{owner("web")}}},
			req:     request("web"), want: []string{"192.0.2.7"}},
		{name: "of two held addresses the one in the status stays", pools: []Pool{pool("a", "192.0.2.0/24")},
			records: []Record{
				{Address: addr("192.0.2.3"), Pool: "a", Owners: []alloc.Owner{owner("web")}},
				{Address: addr("192.0.2.7"), Pool: "a", Owners: []alloc.Owner{owner("web")}}},
			req: request("web", func(r *provisioner.Request) { r.Current = addrs("192.0.2.7") }), want: []string{"192.0.2.7"}},
		{name: "other pool asked for, and full: the address stays", pools: []Pool{pool("a", "192.0.2.0/24"), pool("b", "198.51.100.1/32")},
			records: []Record{
				{Address: addr("192.0.2.3"), Pool: "a", Owners: []alloc.Owner{owner("web")}},
				{Address: addr("198.51.100.1"), Pool: "b", Owners: []alloc.Owner{owner("x")}}},
			req: request("web", func(r *provisioner.Request) { r.Pool = "b" }), want: []string{"192.0.2.3"}, unmet: provisioner.ReasonPoolExhausted, message: "pool b has 1 assigned"},
		{name: "other pool asked for", pools: []Pool{pool("a", "192.0.2.0/24"), pool("b", "198.51.100.1/32")},
			records: []Record{{Address: addr("192.0.2.3"), Pool: "a", Owners: []alloc.Owner{owner("web")}}},
			req:     request("web", func(r *provisioner.Request) { r.Pool = "b" }), want: []string{"198.51.100.1"}},
		{name: "reservation goes first, even from a pool that does not admit it", pools: []Pool{pool("a", "192.0.2.0/24"), with(pool("b", "198.51.100.0/24"), func(p *Pool) { p.Services = gold })},
			records: []Record{{Address: addr("198.51.100.9"), Pool: "b", Reserved: true, ReservedFor: nameOf(owner("web"))}},
			req:     request("web"), want: []string{"198.51.100.9"}},
		{name: "reservation in no pool, by address", records: []Record{{Address: addr("198.51.100.9"), Reserved: true}},
			req: request("web", func(r *provisioner.Request) { r.Addresses = addrs("198.51.100.9") }), want: []string{"198.51.100.9"}},
		{name: "address in quarantine is passed over", pools: []Pool{pool("a", "192.0.2.1-192.0.2.2")},
			records: []Record{{Address: addr("192.0.2.1"), Pool: "a", ReleasedAt: noon, ReleasedBy: nameOf(owner("x"))}},
			req:     request("web"), want: []string{"192.0.2.2"}},
		{name: "but not for who had it", pools: []Pool{pool("a", "192.0.2.1-192.0.2.2")},
			records: []Record{{Address: addr("192.0.2.2"), Pool: "a", ReleasedAt: noon, ReleasedBy: nameOf(owner("web"))}},
			req:     request("web"), want: []string{"192.0.2.2"}},
		{name: "sharing goes before a new address", pools: []Pool{pool("a", "192.0.2.0/24")},
			records: []Record{{Address: addr("192.0.2.9"), Pool: "a", SharingKey: "k", Owners: []alloc.Owner{owner("x")}}},
			ports:   map[string][]provisioner.Port{"ns/x": {{Protocol: corev1.ProtocolTCP, Port: 443}}},
			req:     request("web", func(r *provisioner.Request) { r.SharingKey = "k" }), want: []string{"192.0.2.9"}},
		{name: "same port of the other protocol can share", pools: []Pool{pool("a", "192.0.2.0/24")},
			records: []Record{{Address: addr("192.0.2.9"), Pool: "a", SharingKey: "k", Owners: []alloc.Owner{owner("x")}}},
			ports:   map[string][]provisioner.Port{"ns/x": {{Protocol: corev1.ProtocolUDP, Port: 80}}},
			req:     request("web", func(r *provisioner.Request) { r.SharingKey = "k" }), want: []string{"192.0.2.9"}},
		{name: "who stops sharing gets an address of its own", pools: []Pool{pool("a", "192.0.2.0/24")},
			records: []Record{{Address: addr("192.0.2.9"), Pool: "a", SharingKey: "k", Owners: []alloc.Owner{owner("web"), owner("x")}}},
			req:     request("web"), want: []string{"192.0.2.1"}},
		{name: "network and broadcast addresses last: other ranges first", pools: []Pool{pool("a", "192.0.2.128/30", "192.0.2.7/32")},
			records: held("192.0.2.129", "192.0.2.130"), req: request("web"), want: []string{"192.0.2.7"}},
		{name: "network and broadcast addresses when all else is taken", pools: []Pool{pool("a", "192.0.2.128/30", "192.0.2.7/32")},
			records: held("192.0.2.129", "192.0.2.130", "192.0.2.7"), req: request("web"), want: []string{"192.0.2.128"}},
		{name: "the second of them", pools: []Pool{pool("a", "192.0.2.128/30")},
			records: held("192.0.2.128", "192.0.2.129", "192.0.2.130"), req: request("web"), want: []string{"192.0.2.131"}},
		{name: "those of a class C network, in a range", pools: []Pool{pool("a", "192.0.2.255-198.51.100.1")},
			req: request("web"), want: []string{"192.0.3.1"}},
		{name: "none of a CIDR of two", pools: []Pool{pool("a", "192.0.2.128/31")}, req: request("web"), want: []string{"192.0.2.128"}},
		{name: "with avoidBuggyIPs never, but the ends of a CIDR last", pools: []Pool{with(pool("a", "192.0.2.128/25"), func(p *Pool) { p.AvoidBuggyIPs = true })},
			req: request("web"), want: []string{"192.0.2.129"}},
		{name: "the routers' anycast address never", pools: []Pool{pool("a", "2001:db8:0:1::-2001:db8:0:1::1")},
			records: held("2001:db8:0:1::1"), req: request("web", six), unmet: provisioner.ReasonPoolExhausted, message: "1 assigned"},
		{name: "the routers' anycast address in the midst", pools: []Pool{pool("a", "2001:db8:0:1:ffff:ffff:ffff:ffff-2001:db8:0:2::1")},
			records: held("2001:db8:0:1:ffff:ffff:ffff:ffff"), req: request("web", six), want: []string{"2001:db8:0:2::1"}},
		{name: "the routers' anycast address if it is asked for", pools: []Pool{pool("a", "2001:db8:0:1::/64")},
			req: request("web", six, func(r *provisioner.Request) { r.Addresses = addrs("2001:db8:0:1::") }), unmet: "", want: []string{"2001:db8:0:1::"}},
		{name: "the first address of a small IPv6 CIDR last", pools: []Pool{pool("a", "2001:db8::80/126")},
			req: request("web", six), want: []string{"2001:db8::81"}},
		{name: "what no host can have is passed over in a pool of an older API server", pools: []Pool{pool("a", "127.255.255.255-128.0.0.1")},
			req: request("web"), want: []string{"128.0.0.1"}},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			s := newStore(1, 0)
			for _, r := range test.records {
				r.UID = "u"
				s.put(r)
			}
			w := newWorld(s, test.pools...)
			w.ports = test.ports
			w.Index.SetExclusions("test", test.exclude)
			w.watch.catchUp(-1)
			got, err := w.Allocate(t.Context(), test.req)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(addrs(test.want...), got.Addresses, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("addresses (-want +got):\n%s", diff)
			}
			reason, message := "", ""
			if got.Unmet != nil {
				reason, message = got.Unmet.Reason, got.Unmet.Message
			}
			if reason != test.unmet || !strings.Contains(message, test.message) {
				t.Errorf("unmet: got %s: %s, want %s: ...%s...", reason, message, test.unmet, test.message)
			}
			w.consistent(t)
			again, err := w.Allocate(t.Context(), test.req)
			if err != nil || !slices.Equal(again.Addresses, got.Addresses) {
				t.Errorf("asked again: got %v, %v, want %v", again.Addresses, err, got.Addresses)
			}
		})
	}
}

// consistent compares the index with the store, and with an index made afresh.
func (w *world) consistent(t *testing.T) {
	t.Helper()
	w.watch.catchUp(-1)
	fresh := NewIndex()
	for _, p := range w.Index.pools {
		fresh.SetPool(p.Pool)
	}
	for source, e := range w.Index.exclusions {
		fresh.SetExclusions(source, e)
	}
	for _, r := range w.store.copies() {
		fresh.Put(r)
	}
	if diff := cmp.Diff(fresh.records, w.Index.records, cmpopts.EquateComparable(netip.Addr{}), cmp.Comparer(sameRecord)); diff != "" {
		t.Errorf("records (-store +index):\n%s", diff)
	}
	if n := len(w.Index.inFlight); n > 0 {
		t.Errorf("%d addresses are still in flight: %v", n, w.Index.inFlight)
	}
	for _, name := range fresh.Pools() {
		want, _ := fresh.Report(name)
		got, _ := w.Index.Report(name)
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, Exclusion{})); diff != "" {
			t.Errorf("report of pool %s (-fresh +incremental):\n%s", name, diff)
		}
	}
	for _, x := range []struct {
		what      string
		want, got any
	}{
		{"byOwner", fresh.byOwner, w.Index.byOwner}, {"reservedFor", fresh.reservedFor, w.Index.reservedFor},
		{"releasedBy", fresh.releasedBy, w.Index.releasedBy}, {"bySharingKey", fresh.bySharingKey, w.Index.bySharingKey},
		{"orphans", fresh.orphans, w.Index.orphans},
	} {
		if diff := cmp.Diff(x.want, x.got, cmpopts.EquateComparable(netip.Addr{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-fresh +incremental):\n%s", x.what, diff)
		}
	}
}

func sameRecord(a, b Record) bool {
	return a.Address == b.Address && a.Version == b.Version && a.UID == b.UID && slices.Equal(a.Owners, b.Owners) && a.ReleasedAt.Equal(b.ReleasedAt)
}

func TestOrderOfEventsIsIrrelevant(t *testing.T) {
	records := []Record{
		{Address: addr("192.0.2.1"), Pool: "a", UID: "1", Version: "11", Owners: []alloc.Owner{owner("x")}},
		{Address: addr("192.0.2.2"), Pool: "a", UID: "2", Version: "12", ReleasedAt: noon, ReleasedBy: nameOf(owner("y"))},
		{Address: addr("192.0.2.3"), Pool: "a", UID: "3", Version: "13", Reserved: true},
		{Address: addr("192.0.2.9"), Pool: "a", UID: "4", Version: "14", Owners: []alloc.Owner{owner("z")}},
	}
	p := with(pool("a", "192.0.2.0/29"), func(p *Pool) { p.Quarantine = time.Minute; p.AvoidBuggyIPs = true })
	exclusions := []Exclusion{{Range: AddrRange(addr("192.0.2.4")), Why: "node n"}}
	var first Report
	for seed := range uint64(50) {
		steps := []func(*Index){
			func(x *Index) { x.SetPool(p) }, func(x *Index) { x.SetExclusions("n", exclusions) },
			func(x *Index) { x.Put(with0(records[0])) }, // an older version, which comes late or early
		}
		for _, r := range records {
			steps = append(steps, func(x *Index) { x.Put(r) })
		}
		random := newStore(seed, 0).random
		random.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		x := NewIndex()
		for _, step := range steps {
			step(x)
		}
		got, _ := x.Report("a")
		if seed == 0 {
			first = got
			if *got.IPv4 != (*first.IPv4) || got.IPv4.Free != 3 || got.IPv4.Excluded != 2 || got.IPv4.Draining != 1 || !got.NextExpiry.Equal(noon.Add(time.Minute)) {
				t.Fatalf("report: %+v %v", got.IPv4, got.NextExpiry)
			}
		}
		if diff := cmp.Diff(first, got, cmpopts.EquateComparable(netip.Addr{}, Exclusion{})); diff != "" {
			t.Fatalf("seed %d (-first +got):\n%s", seed, diff)
		}
	}
}

// with0 is an older version of a record, of another owner.
func with0(r Record) Record {
	r.Version, r.Owners = "9", []alloc.Owner{owner("old")}
	return r
}

func TestQuarantinedRecordInNoPoolIsOrphan(t *testing.T) {
	w := newWorld(newStore(1, 0), with(pool("a", "192.0.2.1/32"), func(p *Pool) { p.Quarantine = time.Hour }))
	if _, err := w.Allocate(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	if err := w.Release(t.Context(), owner("web")); err != nil {
		t.Fatal(err)
	}
	if got := w.Index.Orphans(); len(got) != 0 {
		t.Errorf("resting in its pool: %v", got)
	}
	if got := w.Index.Expired("a", noon.Add(59*time.Minute)); len(got) != 0 {
		t.Errorf("expired too early: %v", got)
	}
	if got := w.Index.Expired("a", noon.Add(time.Hour)); len(got) != 1 {
		t.Errorf("expired: %v, want one", got)
	}
	w.Index.DeletePool("a")
	orphans := w.Index.Orphans()
	if len(orphans) != 1 {
		t.Fatalf("orphans: %v, want one", orphans)
	}
	if err := w.Forget(t.Context(), orphans[0]); err != nil {
		t.Fatal(err)
	}
	if n := len(w.store.copies()); n != 0 {
		t.Errorf("%d records are left", n)
	}
	w.consistent(t)
}

func TestOverlapBelongsToOlderPool(t *testing.T) {
	older := with(pool("older", "192.0.2.1-192.0.2.2"), func(p *Pool) { p.Created = noon })
	newer := with(pool("newer", "192.0.2.2-192.0.2.3"), func(p *Pool) { p.Created, p.Priority = noon.Add(time.Hour), 9 })
	w := newWorld(newStore(1, 0), newer, older)
	var got []netip.Addr
	for _, name := range []string{"a", "b", "c"} {
		a, err := w.Allocate(t.Context(), request(name))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.Addresses...)
	}
	if diff := cmp.Diff(addrs("192.0.2.3", "192.0.2.1", "192.0.2.2"), got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if r := w.store.copies()[addr("192.0.2.2")]; r.Pool != "older" {
		t.Errorf("192.0.2.2 belongs to pool %s, want older", r.Pool)
	}
	w.consistent(t)
}

func TestLargeIPv6PoolMemory(t *testing.T) {
	w := newWorld(newStore(1, 0), pool("a", "2001:db8::/64"))
	six := func(r *provisioner.Request) { r.Families = []corev1.IPFamily{corev1.IPv6Protocol} }
	far := func(r *provisioner.Request) { r.Addresses = addrs("2001:db8::ffff:ffff:ffff:ffff") }
	for name, change := range map[string][]func(*provisioner.Request){"near": {six}, "far": {six, far}} {
		if a, err := w.Allocate(t.Context(), request(name, change...)); err != nil || len(a.Addresses) != 1 {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
	}
	r, _ := w.Index.Report("a")
	if r.IPv6.Total != maxCount || r.IPv6.Assigned != 2 || r.IPv6.Excluded != 0 || r.IPv6.Free <= 0 {
		t.Errorf("report: %+v", r.IPv6)
	}
	w.consistent(t)
}

// held makes records of pool a that another Service holds.
func held(addresses ...string) []Record {
	var out []Record
	for _, a := range addrs(addresses...) {
		out = append(out, Record{Address: a, Pool: "a", Owners: []alloc.Owner{owner("x")}})
	}
	return out
}

func six(r *provisioner.Request) { r.Families = []corev1.IPFamily{corev1.IPv6Protocol} }

// Where nodes drop what is not local, Services of policy Local share an address
// only if they have the same Pods.
func TestShareWithPolicyLocal(t *testing.T) {
	const front, back = "ns/app=front", "ns/app=back"
	for _, test := range []struct {
		name         string
		mine, theirs string
		forwarded    bool
		shares       bool
	}{
		{name: "other Pods", mine: front, theirs: back},
		{name: "the same Pods", mine: front, theirs: front, shares: true},
		{name: "the other has policy Cluster", mine: front, shares: true},
		{name: "this one has policy Cluster", theirs: back, shares: true},
		{name: "nodes forward what is not local", mine: front, theirs: back, forwarded: true, shares: true},
	} {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) {
			s := newStore(1, 0)
			s.put(Record{Address: addr("192.0.2.9"), Pool: "a", SharingKey: "k", UID: "u", Owners: []alloc.Owner{owner("x")}})
			w := newWorld(s, pool("a", "192.0.2.0/24"))
			if !test.forwarded {
				w.LocalPods = func(alloc.Owner) string { return test.theirs }
			}
			w.watch.catchUp(-1)
			asks := func(r *provisioner.Request) { r.SharingKey, r.LocalPods = "k", test.mine }
			got, err := w.Allocate(t.Context(), request("web", asks))
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{true: "192.0.2.9", false: "192.0.2.1"}[test.shares]; !slices.Equal(got.Addresses, addrs(want)) {
				t.Errorf("any address: got %v, want %s", got.Addresses, want)
			}
			got, err = w.Allocate(t.Context(), request("asking", asks, func(r *provisioner.Request) {
				r.Addresses, r.Ports = addrs("192.0.2.9"), []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: 8443}}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if test.shares != (got.Unmet == nil) || got.Unmet != nil && (got.Unmet.Reason != provisioner.ReasonSharingNotAllowed || !strings.Contains(got.Unmet.Message, "externalTrafficPolicy: Cluster")) {
				t.Errorf("asked for: unmet %+v, want shared: %v", got.Unmet, test.shares)
			}
			w.consistent(t)
		})
	}
}
