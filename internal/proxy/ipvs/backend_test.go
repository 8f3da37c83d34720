// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestContractOnFake(t *testing.T) {
	k := newFakeKernel()
	backendtest.Run(t, func(t testing.TB) backend.Backend {
		b := newFakeBackend(k, Config{})
		t.Cleanup(func() { b.Close() })
		return b
	})
}

func testService(proto model.Protocol, scheduler string, endpoints ...string) *model.Service {
	t := &model.Target{Action: model.Reject}
	for _, e := range endpoints {
		t.Action = model.Forward
		t.Endpoints = append(t.Endpoints, model.Endpoint{AddrPort: netip.MustParseAddrPort(e), Weight: 1})
	}
	return &model.Service{
		Name: types.NamespacedName{Namespace: "default", Name: "web"}, Scheduler: scheduler,
		Frontends: []model.Frontend{{
			Key: model.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: proto}, Inside: t, Outside: t,
		}},
	}
}

func mustSync(t *testing.T, b *Backend, svcs ...*model.Service) backend.Report {
	t.Helper()
	d := model.Desired{Services: map[types.NamespacedName]*model.Service{}}
	changed := []types.NamespacedName{{Namespace: "default", Name: "web"}}
	for _, s := range svcs {
		d.Services[s.Name] = s
	}
	report, err := backendtest.Sync(t.Context(), b, d, changed)
	if err != nil {
		t.Fatal(err)
	}
	return report.Report
}

// weights gives the real servers of the only virtual server, nil if there is
// none.
func (k *fakeKernel) weights(t *testing.T) map[string]uint32 {
	t.Helper()
	if len(k.servers) > 1 {
		t.Fatalf("%d virtual servers, want one at most", len(k.servers))
	}
	for _, s := range k.servers {
		out := map[string]uint32{}
		for _, r := range s.Reals {
			out[r.String()] = r.Weight
		}
		return out
	}
	return nil
}

// connect sets how many connections a real server has.
func (k *fakeKernel) connect(active uint32, to string) {
	for _, s := range k.servers {
		for i := range s.Reals {
			if s.Reals[i].String() == to {
				s.Reals[i].Active = active
			}
		}
	}
}

const podA, podB = "10.244.1.2:8080", "10.244.1.3:8080"

// A removed endpoint keeps its connections, gets no new ones, and goes when
// they have ended or took too long.
func TestDraining(t *testing.T) {
	check := func(t *testing.T, k *fakeKernel, want map[string]uint32) {
		t.Helper()
		if diff := cmp.Diff(want, k.weights(t)); diff != "" {
			t.Fatalf("real servers (-want +got):\n%s", diff)
		}
	}
	begin := func(t *testing.T, proto model.Protocol) (*fakeKernel, *Backend, *time.Time) {
		k, now := newFakeKernel(), time.Unix(0, 0)
		b := newFakeBackend(k, Config{DrainInterval: time.Hour, DrainTimeout: time.Minute})
		b.now = func() time.Time { return now }
		t.Cleanup(func() { b.Close() })
		mustSync(t, b, testService(proto, "", podA, podB))
		k.connect(1, podA)
		return k, b, &now
	}
	t.Run("goes when its connections have ended", func(t *testing.T) {
		k, b, _ := begin(t, model.TCP)
		mustSync(t, b, testService(model.TCP, "", podB))
		b.sweep()
		check(t, k, map[string]uint32{podA: 0, podB: 1})
		k.connect(0, podA)
		b.sweep()
		check(t, k, map[string]uint32{podB: 1})
	})
	t.Run("goes when it takes too long", func(t *testing.T) {
		k, b, now := begin(t, model.TCP)
		mustSync(t, b, testService(model.TCP, "", podB))
		*now = now.Add(time.Minute)
		b.sweep()
		check(t, k, map[string]uint32{podB: 1})
	})
	t.Run("comes back", func(t *testing.T) {
		k, b, now := begin(t, model.TCP)
		mustSync(t, b, testService(model.TCP, "", podB))
		mustSync(t, b, testService(model.TCP, "", podA, podB))
		*now = now.Add(time.Hour)
		b.sweep()
		check(t, k, map[string]uint32{podA: 1, podB: 1})
	})
	t.Run("UDP goes at once", func(t *testing.T) {
		k, b, _ := begin(t, model.UDP)
		mustSync(t, b, testService(model.UDP, "", podB))
		check(t, k, map[string]uint32{podB: 1})
	})
	t.Run("the last endpoint drains, then the virtual server goes", func(t *testing.T) {
		k, b, _ := begin(t, model.TCP)
		mustSync(t, b, testService(model.TCP, ""))
		b.sweep()
		check(t, k, map[string]uint32{podA: 0})
		k.connect(0, podA)
		b.sweep()
		check(t, k, nil)
	})
	t.Run("a new process goes on", func(t *testing.T) {
		k, b, _ := begin(t, model.TCP)
		mustSync(t, b, testService(model.TCP, "", podB))
		next := newFakeBackend(k, Config{DrainInterval: time.Hour})
		defer next.Close()
		mustSync(t, next, testService(model.TCP, "", podB))
		check(t, k, map[string]uint32{podA: 0, podB: 1})
		k.connect(0, podA)
		next.sweep()
		check(t, k, map[string]uint32{podB: 1})
	})
	t.Run("one port of an address that goes", func(t *testing.T) {
		k, b, _ := begin(t, model.TCP)
		other := testService(model.TCP, "", podA)
		other.Frontends[0].Port = 81
		mustSync(t, b, other)
		ours := func() []ipvs.RealServer {
			reals, _ := b.servers.ReadReals(ipvs.Key{Addr: other.Frontends[0].Addr, Port: 80, Protocol: uint8(model.TCP)})
			return reals
		}
		if reals := ours(); len(reals) != 2 || reals[0].Weight+reals[1].Weight != 0 {
			t.Fatalf("with a connection: %v, want both to drain", reals)
		}
		b.sweep()
		if reals := ours(); len(reals) != 1 {
			t.Fatalf("with a connection: %v, want what has it", reals)
		}
		k.connect(0, podA)
		b.sweep()
		check(t, k, map[string]uint32{podA: 1}) // the other port's
	})
	t.Run("a deleted Service does not wait", func(t *testing.T) {
		k, b, _ := begin(t, model.TCP)
		mustSync(t, b)
		check(t, k, nil)
	})
}

// A virtual server that an earlier process left to drain keeps its mark to itself,
// and its end frees no mark that is in use: whose Service goes, goes too.
func TestMarksOfWhatDrains(t *testing.T) {
	nodePort := testService(model.TCP, "", podA)
	f := &nodePort.Frontends[0]
	f.Kind, f.Addr, f.Port = model.NodePort, netip.IPv4Unspecified(), 30080
	for _, tc := range []struct {
		name string
		mark action
		v6   bool
		used bool // the NodePort has the mark too
	}{{"of the same family", markBase | 1, false, false}, {"of the other family", markBase | 1, true, false}, {"with a mark given twice", markBase | 7, true, true}} {
		t.Run(tc.name, func(t *testing.T) {
			k := newFakeKernel()
			old := ipvs.Key{Mark: uint32(tc.mark), IPv6: tc.v6}
			k.servers[old] = &ipvs.VirtualServer{
				Key: old, Settings: ipvs.Settings{Scheduler: "wrr", Tag: true},
				Reals: []ipvs.RealServer{{AddrPort: netip.MustParseAddrPort(podB), Active: 1}},
			}
			if tc.used {
				id := elementID{Family: model.IPv4, Set: setNodePorts, Key: elements.FrontendKey(f.Key)}
				err := newTables(k.nftables.Conn(), model.Families[:]).commit(&model.Node{}, tablesFor(model.Families[:]), []edit{{Key: id, New: tc.mark.data(), Has: true}})
				if err != nil {
					t.Fatal(err)
				}
			}
			b := newFakeBackend(k, Config{DrainInterval: time.Hour})
			defer b.Close()
			mustSync(t, b, nodePort)
			if reals := k.servers[old].Reals; len(k.servers) != 2 || len(reals) != 1 || reals[0].Weight != 0 {
				t.Fatalf("%d virtual servers, want two; that which drains has %v", len(k.servers), reals)
			}
			k.connect(0, podB)
			b.sweep()
			check := func(want map[string]uint32) {
				t.Helper()
				if diff := cmp.Diff(want, k.weights(t)); diff != "" {
					t.Fatalf("real servers (-want +got):\n%s", diff)
				}
			}
			check(map[string]uint32{podA: 1})
			mustSync(t, b)
			check(map[string]uint32{podA: 0})
			b.sweep()
			check(nil)
		})
	}
}

// Another mode takes over: nothing that refuses new connections stays, and what
// established ones need goes when they have ended.
func TestLeave(t *testing.T) {
	k := newFakeKernel()
	b := newFakeBackend(k, Config{})
	mustSync(t, b, testService(model.TCP, "", podA))
	k.connect(1, podA)
	b.Close()
	next := newFakeBackend(k, Config{})
	defer next.Close()
	for range 2 {
		if done, err := next.Leave(t.Context()); done || err != nil {
			t.Fatalf("with a connection: done %v, error %v", done, err)
		}
		elements, tables := k.state(t)
		if len(elements) != 0 || tables[tableOf(model.IPv4)] || !tables[arpTable] || !tables[repliesOf(model.IPv6)] || len(k.servers) != 1 || len(k.routes) != 1 {
			t.Fatalf("with a connection: elements %v, tables %v, %d virtual servers, routes %v", elements, tables, len(k.servers), k.routes)
		}
	}
	k.connect(0, podA)
	if done, err := next.Leave(t.Context()); !done || err != nil {
		t.Fatalf("without: done %v, error %v", done, err)
	}
	if _, tables := k.state(t); len(tables)+len(k.servers)+len(k.routes) != 0 {
		t.Errorf("left: tables %v, servers %v, routes %v", tables, k.servers, k.routes)
	}
}

// The Service's scheduler is used; one that the kernel lacks is replaced, and
// the Service's owner is told, by changes and by full Syncs.
func TestScheduler(t *testing.T) {
	k := newFakeKernel()
	k.lacks["mh"] = true
	b := newFakeBackend(k, Config{})
	defer b.Close()
	for _, tc := range []struct{ asked, used string }{{"", "wrr"}, {"lc", "lc"}, {"mh", "sh"}, {"sed", "sed"}} {
		for _, full := range []bool{false, true} {
			if full {
				backendtest.Forget(b)
			}
			report := mustSync(t, b, testService(model.TCP, tc.asked, podA))
			told := len(report.Problems) == 1 && report.Problems[0].Reason == SchedulerUnsupported
			if replaced := tc.asked != "" && tc.asked != tc.used; told != replaced {
				t.Errorf("asked for %q, got %q: problems %v", tc.asked, tc.used, report.Problems)
			}
		}
		for _, s := range k.servers {
			if s.Scheduler != tc.used {
				t.Errorf("asked for %q: %q, want %q", tc.asked, s.Scheduler, tc.used)
			}
		}
	}
}

// A kernel without the node's own scheduler cannot do the mode, and that shows
// before there is a Service.
func TestSchedulerOfTheNodeIsMissing(t *testing.T) {
	k := newFakeKernel()
	k.lacks["lblcr"] = true
	b := newFakeBackend(k, Config{Scheduler: "lblcr"})
	defer b.Close()
	_, err := backendtest.Sync(t.Context(), b, model.Desired{}, nil)
	var lacks *backend.UnsupportedError
	if !errors.As(err, &lacks) || !strings.Contains(err.Error(), "ip_vs_lblcr") {
		t.Errorf("error %v, want an UnsupportedError that names the module", err)
	}
}

// Where affinity has no time-out the Service's owner is told, and nowhere else.
func TestAffinityWithoutTimeoutIsAProblem(t *testing.T) {
	b := newFakeBackend(newFakeKernel(), Config{})
	defer b.Close()
	sticky, local := target(addrA, addrB), target(addrA)
	sticky.Affinity, local.Affinity = time.Hour, time.Hour
	balancer := func(inside, outside *model.Target) *model.Service {
		svc := web(model.TCP, inside, outside)
		svc.Frontends[1].Kind, svc.Frontends[1].Addr = model.LoadBalancerIP, netip.MustParseAddr("192.0.2.200")
		return svc
	}
	clusterIP := web(model.TCP, sticky, sticky)
	clusterIP.Frontends = clusterIP.Frontends[:1]
	for _, tc := range []struct {
		name string
		svc  *model.Service
		want string // in the message; "" is none
	}{
		{"ClusterIP", clusterIP, ""},
		{"NodePort", web(model.TCP, sticky, sticky), "NodePort 30080/TCP"},
		{"NodePort without affinity", web(model.TCP, target(addrA), target(addrA)), ""},
		{"load balancer IP", balancer(sticky, sticky), ""},
		{"load balancer IP, policy Local", balancer(sticky, local), "192.0.2.200:30080/TCP"},
	} {
		ps := mustSync(t, b, tc.svc).Problems
		if tc.want == "" && len(ps) > 0 || tc.want != "" && (len(ps) != 1 || ps[0].Reason != AffinityTimeoutUnsupported || !strings.Contains(ps[0].Message, tc.want)) {
			t.Errorf("%s: problems %v, want %q", tc.name, ps, tc.want)
		}
	}
}

// Packets are led to what exists only.
func TestOrder(t *testing.T) {
	k := newFakeKernel()
	b := newFakeBackend(k, Config{})
	defer b.Close()
	mustSync(t, b)
	k.calls = nil
	mustSync(t, b, testService(model.TCP, "", podA))
	mustSync(t, b)
	want := []string{
		"add virtual server 10.96.0.10:80/6 (wrr)", "add real server 10.244.1.2:8080 of 10.96.0.10:80/6", "commit", "route 10.96.0.10",
		"unroute 10.96.0.10", "commit", "delete virtual server 10.96.0.10:80/6",
	}
	if diff := cmp.Diff(want, k.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// An address of the node itself stays the node's: others may listen there.
func TestOwnAddressGetsNoRoute(t *testing.T) {
	k := newFakeKernel()
	k.addrs[netip.MustParseAddr("10.96.0.10")] = true
	b := newFakeBackend(k, Config{})
	defer b.Close()
	mustSync(t, b, testService(model.TCP, "", podA))
	if len(k.routes) != 0 || len(k.servers) != 1 {
		t.Errorf("routes %v, %d virtual servers, want none and one", k.routes, len(k.servers))
	}
}

// An address that comes or goes has everything compared. Those of links come and
// go with every Pod, and a router tells of the same address again and again:
// that must not.
func TestAddressesThatConcern(t *testing.T) {
	k := newFakeKernel()
	k.addrs[netip.MustParseAddr("192.0.2.11")] = true
	b := newFakeBackend(k, Config{})
	defer b.Close()
	mustSync(t, b, testService(model.TCP, "", podA))
	for _, tc := range []struct {
		address string
		comes   bool
		want    bool
	}{
		{"192.0.2.11", false, true}, {"192.0.2.12", true, true}, {"2001:db8::12", true, true},
		{"192.0.2.11", true, false}, {"192.0.2.12", false, false},
		{"fe80::1", true, false}, {"fe80::1", false, false}, {"169.254.1.1", true, false},
	} {
		u := netlink.AddrUpdate{LinkAddress: net.IPNet{IP: net.ParseIP(tc.address)}, NewAddr: tc.comes}
		if got := b.concerns(u); got != tc.want {
			t.Errorf("%s comes %v: concerns %v, want %v", tc.address, tc.comes, got, tc.want)
		}
	}
}

// A node that gets an address has everything compared, and the watch ends with
// its context.
func TestWatchAddresses(t *testing.T) {
	nstest.Require(t, "ip")
	b := newFakeBackend(newFakeKernel(), Config{})
	defer b.Close()
	notified := make(chan struct{}, 16)
	told := func(what string) {
		t.Helper()
		select {
		case <-notified:
		case <-time.After(patience):
			t.Fatalf("not notified: %s", what)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.Watch(ctx, func() { notified <- struct{}{} }) }()
	told("what was before is unknown")
	nstest.Loopback(t, "192.0.2.77/32")
	told("an address came")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// settled is what a kernel does with new connections: its state without what
// drains. Marks are replaced by what they stand for.
func settled(t *testing.T, k *fakeKernel) []string {
	t.Helper()
	var out []string
	elements, _ := k.state(t)
	meaning := map[uint32]string{}
	for id, value := range elements {
		if a := actionOf(value); id.Set <= setNodePortsOutside && a.byMark() {
			meaning[uint32(a)] = fmt.Sprintf("%s %x", id.Set, id.Key)
			value = "by mark"
		}
		out = append(out, fmt.Sprintf("%d %s %x %x %v %x", id.Family, id.Set, id.Key, id.KeyEnd, id.End, value))
	}
	for key, s := range k.servers {
		name := key.String()
		if key.Mark != 0 {
			name = fmt.Sprintf("%v %s", key.IPv6, meaning[key.Mark])
		}
		for _, r := range s.Reals {
			if r.Weight > 0 {
				out = append(out, fmt.Sprintf("%s %v -> %v weight %d", name, s.Settings, r.AddrPort, r.Weight))
			}
		}
	}
	for a := range k.routes {
		out = append(out, "route "+a.String())
	}
	if k.opened {
		out = append(out, "firewall open")
	}
	slices.Sort(out)
	return out
}

// However the kernel's calls fail, done or not, in Syncs, while draining, while
// another mode takes over or all is cleaned up, and wherever the process ends and
// another goes on: the next Syncs converge to what a faultless kernel has.
func TestConvergesAfterFaults(t *testing.T) {
	failures := 0
	for seed := range uint64(200) {
		failures += convergeAfterFaults(t, seed)
	}
	if failures < 1000 {
		t.Errorf("%d faults in all: too few to mean anything", failures)
	}
}

func convergeAfterFaults(t *testing.T, seed uint64) (failures int) {
	t.Helper()
	k, dice := newFakeKernel(), rand.New(rand.NewPCG(seed, 2))
	k.fail(rand.New(rand.NewPCG(seed, 1)), 0.005)
	now := time.Unix(0, 0)
	begin := func() *Backend {
		b := newFakeBackend(k, Config{DrainInterval: time.Hour, DrainTimeout: time.Minute})
		b.now = func() time.Time { return now }
		return b
	}
	b := begin()
	defer func() { b.Close() }()
	story := backendtest.NewStory(seed)
	for range 120 {
		story.Change()
		for _, s := range k.servers { // some endpoints get or lose their connections
			if len(s.Reals) > 0 && dice.IntN(10) == 0 {
				s.Reals[dice.IntN(len(s.Reals))].Active = dice.Uint32N(2)
			}
		}
		switch dice.IntN(25) {
		case 0:
			now = now.Add(time.Duration(dice.IntN(90)) * time.Second)
			b.sweep()
		case 1:
			b.Close()
			b = begin()
		case 2:
			_ = backendtest.Cleanup(t.Context(), b)
		case 3:
			_, _ = b.Leave(t.Context())
			backendtest.Forget(b)
		case 4:
			story.MasqueradeAll = !story.MasqueradeAll
		}
		_ = story.Sync(t.Context(), b, false)
	}
	k.fail(nil, 0)
	// If draining has failed, the next change has everything read back.
	if err := story.Sync(t.Context(), b, !b.synced); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	now = now.Add(time.Hour)
	b.sweep() // everything that drained has had its time
	perfect := newFakeKernel()
	if _, err := backendtest.Sync(t.Context(), newFakeBackend(perfect, Config{}), story.Desired(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(settled(t, perfect), settled(t, k)); diff != "" {
		t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
	}
	for key, s := range k.servers {
		if len(s.Reals) == 0 || slices.ContainsFunc(s.Reals, func(r ipvs.RealServer) bool { return r.Weight == 0 }) {
			t.Fatalf("seed %d: %s was left with %v", seed, key, s.Reals)
		}
	}
	return k.failures + k.nftables.Fault()
}
