// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func key(s string, p model.Protocol) model.Key {
	a := ap(s)
	return model.Key{Addr: a.Addr(), Port: a.Port(), Protocol: p}
}

func udp(frontend string, endpoints ...string) *model.Service {
	f := model.Frontend{Key: key(frontend, model.UDP), Inside: &model.Target{}, Outside: &model.Target{}}
	for _, e := range endpoints {
		f.Serving = append(f.Serving, ap(e))
	}
	return &model.Service{Name: types.NamespacedName{Name: "dns"}, Frontends: []model.Frontend{f}}
}

func tcp(frontend string, endpoints ...string) *model.Service {
	t := &model.Target{}
	f := model.Frontend{Key: key(frontend, model.TCP), Inside: t, Outside: t}
	for _, e := range endpoints {
		t.Endpoints = append(t.Endpoints, model.Endpoint{AddrPort: ap(e)})
		f.Serving = append(f.Serving, ap(e))
	}
	return &model.Service{Frontends: []model.Frontend{f}}
}

// draining adds endpoints that get no new connections.
func draining(svc *model.Service, endpoints ...string) *model.Service {
	for i := range svc.Frontends {
		for _, e := range endpoints {
			svc.Frontends[i].Serving = append(svc.Frontends[i].Serving, ap(e))
		}
		slices.SortFunc(svc.Frontends[i].Serving, netip.AddrPort.Compare)
	}
	return svc
}

var byString = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestPlan(t *testing.T) {
	const fe, a, b = "10.96.0.10:53", "10.244.1.2:53", "10.244.1.3:53"
	for _, tc := range []struct {
		name     string
		old, new *model.Service
		tcp      bool
		want     []Scope
	}{
		{name: "nothing", old: udp(fe, a), new: udp(fe, a)},
		{name: "endpoint goes", old: udp(fe, a, b), new: udp(fe, b), want: []Scope{{Key: key(fe, model.UDP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}}}},
		{name: "endpoint comes", old: udp(fe, a), new: udp(fe, a, b)},
		{name: "last endpoint goes", old: udp(fe, a), new: udp(fe), want: []Scope{{Key: key(fe, model.UDP), Gone: []netip.AddrPort{ap(a)}}}},
		{name: "Service goes", old: udp(fe, a), want: []Scope{{Key: key(fe, model.UDP), Gone: []netip.AddrPort{ap(a)}}}},
		{name: "Service comes", new: udp(fe, a), want: []Scope{{Key: key(fe, model.UDP), Keep: []netip.AddrPort{ap(a)}}}},
		{name: "NodePort comes", new: udp("0.0.0.0:30053", a), want: []Scope{{Key: key("0.0.0.0:30053", model.UDP), Keep: []netip.AddrPort{ap(a)}, AllGone: true}}},
		{name: "TCP connections that never came about", old: tcp(fe, a, b), new: tcp(fe, b), want: []Scope{{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}, Unanswered: true}}},
		{name: "TCP endpoint drains", old: tcp(fe, a, b), new: draining(tcp(fe, b), a), want: []Scope{{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}, Unanswered: true}}},
		{name: "TCP on request, endpoint drains", old: tcp(fe, a, b), new: draining(tcp(fe, b), a), tcp: true, want: []Scope{{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}, Unanswered: true}}},
		{name: "TCP on request, endpoint has drained", old: draining(tcp(fe, b), a), new: tcp(fe, b), tcp: true, want: []Scope{{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}}}},
		{name: "TCP on request, one drains and one goes", old: tcp(fe, a, b), new: draining(tcp(fe), a), tcp: true, want: []Scope{
			{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(a)}, Gone: []netip.AddrPort{ap(b)}},
			{Key: key(fe, model.TCP), Gone: []netip.AddrPort{ap(a), ap(b)}, Unanswered: true},
		}},
		{name: "TCP on request, Service goes", old: tcp(fe, a), tcp: true, want: []Scope{{Key: key(fe, model.TCP), Gone: []netip.AddrPort{ap(a)}}}},
		{name: "TCP on request", old: tcp(fe, a, b), new: tcp(fe, b), tcp: true, want: []Scope{{Key: key(fe, model.TCP), Keep: []netip.AddrPort{ap(b)}, Gone: []netip.AddrPort{ap(a)}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Plan(model.Change{Old: tc.old, New: tc.new}, tc.tcp)
			if diff := cmp.Diff(tc.want, got, byString); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestStaleOfNodePort(t *testing.T) {
	s := Scope{Key: key("0.0.0.0:30053", model.UDP), Keep: []netip.AddrPort{ap("10.244.1.3:53")}, Gone: []netip.AddrPort{ap("10.244.1.2:53")}}
	mine := newPlace(&model.Node{})
	mine.mine[netip.MustParseAddr("192.0.2.11")] = true
	for _, tc := range []struct {
		destination, endpoint string
		want                  bool
	}{
		{"192.0.2.11:30053", "10.244.1.2:53", true},
		{"192.0.2.11:30053", "10.244.1.3:53", false},
		{"192.0.2.11:30053", "192.0.2.11:30053", true},
		{"192.0.2.11:30053", "10.9.9.9:53", false},      // somebody else's translation
		{"198.51.100.1:30053", "10.244.1.2:53", false},  // not this node's address
		{"192.0.2.11:30054", "192.0.2.11:30054", false}, // another port
	} {
		if got := s.Stale(Flow{Source: ap("198.51.100.9:40000"), Destination: ap(tc.destination), Endpoint: ap(tc.endpoint)}, mine); got != tc.want {
			t.Errorf("flow to %s at %s: stale %v, want %v", tc.destination, tc.endpoint, got, tc.want)
		}
	}
}

// echo answers UDP at an address with its name.
func echo(t *testing.T, addr, name string) {
	t.Helper()
	a := ap(addr)
	nstest.Run(t, "ip", "address", "replace", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()).String(), "dev", "lo", "nodad")
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(name), from)
		}
	}()
}

// flow is a client that keeps its socket.
type flow struct{ c net.Conn }

func newFlow(t *testing.T, to string) *flow {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &flow{c}
}

func (f *flow) ask(t *testing.T) string {
	t.Helper()
	_ = f.c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := f.c.Write([]byte("?")); err != nil {
		return err.Error()
	}
	buf := make([]byte, 16)
	n, err := f.c.Read(buf)
	if err != nil {
		return err.Error()
	}
	return string(buf[:n])
}

// A UDP client follows when its endpoint goes, and others do not notice.
func TestCleanMovesFlows(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	for _, fam := range []struct{ family, frontend, other, a, b string }{
		{"ip", "10.96.0.10:53", "10.96.0.11:53", "10.244.1.2:53", "10.244.1.3:53"},
		{"ip6", "[fd00:10:96::10]:53", "[fd00:10:96::11]:53", "[fd00:10:244:1::2]:53", "[fd00:10:244:1::3]:53"},
	} {
		t.Run(fam.family, func(t *testing.T) {
			echo(t, fam.a, "A")
			echo(t, fam.b, "B")
			route := []string{"route", "replace", "default", "dev", "lo"}
			if fam.family == "ip6" {
				route = append([]string{"-6"}, route...)
			}
			nstest.Run(t, "ip", route...)
			dnat := func(to string) {
				nstest.Run(t, "nft", "add table "+fam.family+" t; delete table "+fam.family+" t; add table "+fam.family+" t;"+
					"add chain "+fam.family+" t o { type nat hook output priority -100; };"+
					"add rule "+fam.family+" t o udp dport 53 dnat to "+to)
			}
			dnat(fam.a)
			mine, others := newFlow(t, fam.frontend), newFlow(t, fam.other)
			if got := mine.ask(t) + others.ask(t); got != "AA" {
				t.Fatalf("answers %q, want AA", got)
			}
			dnat(fam.b)
			if got := mine.ask(t); got != "A" {
				t.Fatalf("without cleaning, %q answers; the test proves nothing", got)
			}
			change := model.Change{Old: udp(fam.frontend, fam.a, fam.b), New: udp(fam.frontend, fam.b)}
			n, err := Table{}.Clean(Plan(change, false))
			if err != nil || n != 1 {
				t.Errorf("Clean: %d flows, %v; want 1", n, err)
			}
			if got := mine.ask(t); got != "B" {
				t.Errorf("the flow went to %q, want B", got)
			}
			if got := others.ask(t); got != "A" {
				t.Errorf("another frontend's flow went to %q, want A as before", got)
			}
			n, err = Table{}.Clean(Plan(change, false))
			if err != nil || n != 0 {
				t.Errorf("second Clean: %d flows, %v; want none", n, err)
			}
		})
	}
}

// An agent that starts does not know which endpoints went before: flows to a
// NodePort that lead elsewhere than to an endpoint that serves are ended.
func TestCleanNodePortAtStart(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	const node, dialled, a, b = "192.0.2.11", "192.0.2.11:30053", "10.244.1.2:53", "10.244.1.3:53"
	echo(t, a, "A")
	echo(t, b, "B")
	nstest.Loopback(t, node+"/32")
	dnat := func(to string) {
		nstest.Run(t, "nft", "add table ip t; delete table ip t; add table ip t;"+
			"add chain ip t o { type nat hook output priority -100; };"+
			"add rule ip t o ip daddr "+node+" udp dport 30053 dnat to "+to)
	}
	dnat(a)
	stale := newFlow(t, dialled)
	if got := stale.ask(t); got != "A" {
		t.Fatalf("answer %q, want A", got)
	}
	dnat(b)
	fine := newFlow(t, dialled)
	if got := stale.ask(t) + fine.ask(t); got != "AB" {
		t.Fatalf("answers %q, want AB", got)
	}
	n, err := Table{}.Clean(Plan(model.Change{New: udp("0.0.0.0:30053", b)}, false))
	if err != nil || n != 1 {
		t.Errorf("Clean: %d flows, %v; want 1", n, err)
	}
	if got := stale.ask(t) + fine.ask(t); got != "BB" {
		t.Errorf("answers %q, want BB", got)
	}
}

// Many scopes share one dump, with the same result.
func TestCleanManyScopes(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	echo(t, "10.244.1.2:53", "A")
	nstest.Run(t, "ip", "route", "replace", "default", "dev", "lo")
	nstest.Run(t, "nft", "add table ip t; delete table ip t; add table ip t;"+
		"add chain ip t o { type nat hook output priority -100; };"+
		"add rule ip t o udp dport 53 dnat to 10.244.1.2:53")
	var scopes []Scope
	for i := range 40 {
		fe := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), 53).String()
		if got := newFlow(t, fe).ask(t); got != "A" {
			t.Fatalf("%s: %q", fe, got)
		}
		if i%2 == 0 {
			scopes = append(scopes, Plan(model.Change{Old: udp(fe, "10.244.1.2:53")}, false)...)
		}
	}
	n, err := Table{}.Clean(scopes)
	if err != nil || n != 20 {
		t.Errorf("Clean: %d flows, %v; want 20", n, err)
	}
}

func TestCleanerJoinsChanges(t *testing.T) {
	const fe, a, b, c = "10.96.0.10:53", "10.244.1.2:53", "10.244.1.3:53", "10.244.1.4:53"
	got := make(chan []Scope, 1)
	cl := NewCleaner(false, nil)
	cl.clean = func(_ *model.Node, s []Scope) (int, error) { got <- s; return 0, nil }
	cl.Changed([]model.Change{{Old: udp(fe, a, b), New: udp(fe, b)}})
	cl.Changed([]model.Change{{Old: udp(fe, b), New: udp(fe, c)}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- cl.Run(ctx) }()
	want := []Scope{{Key: key(fe, model.UDP), Keep: []netip.AddrPort{ap(c)}, Gone: []netip.AddrPort{ap(a), ap(b)}}}
	if diff := cmp.Diff(want, <-got, byString); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What comes back before the flows are looked for keeps them: an endpoint, and the
// whole frontend, though another Service's by then.
func TestCleanerSparesWhatIsBack(t *testing.T) {
	const fe, a, b = "10.96.0.10:80", "10.244.1.2:80", "10.244.1.3:80"
	for _, tcpToo := range []bool{false, true} {
		for _, of := range []func(string, ...string) *model.Service{udp, tcp} {
			for _, between := range []*model.Service{of(fe, b), of(fe), nil} {
				cl := NewCleaner(tcpToo, nil)
				cl.Changed([]model.Change{{Old: of(fe, a, b), New: between}})
				cl.Changed([]model.Change{{Old: between, New: of(fe, a, b)}})
				_, scopes, next := cl.due(time.Now())
				for _, s := range scopes {
					for _, endpoint := range []string{a, b} {
						if s.Stale(Flow{Source: ap("192.0.2.9:40000"), Destination: ap(fe), Endpoint: ap(endpoint)}, newPlace(&model.Node{})) {
							t.Errorf("flows to %s that was away go: %+v", endpoint, s)
						}
					}
				}
				if next != 0 || len(cl.changed) > 0 {
					t.Errorf("left to do, in %v: %v", next, cl.changed)
				}
			}
		}
	}
}

// A connection that was begun to an endpoint just when it went comes about with
// another one, and one that had been established to the same endpoint stays.
func TestCleanRetriesConnections(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	self := nstest.Self(t)
	for _, fam := range []struct{ family, frontend, going, other string }{
		{"ip", "10.96.0.10:80", "10.244.1.2:80", "10.244.1.3:80"},
		{"ip6", "[fd00:10:96::10]:80", "[fd00:10:244:1::2]:80", "[fd00:10:244:1::3]:80"},
	} {
		t.Run(fam.family, func(t *testing.T) {
			going := ap(fam.going).Addr()
			for _, endpoint := range []string{fam.going, fam.other} {
				a := ap(endpoint).Addr()
				nstest.Run(t, "ip", "address", "replace", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo", "nodad")
				echoTCP(t, self, endpoint)
			}
			route := []string{"route", "replace", "default", "dev", "lo"}
			if fam.family == "ip6" {
				route = append([]string{"-6"}, route...)
			}
			nstest.Run(t, "ip", route...)
			rules := func(to, drop string) {
				nstest.Run(t, "nft", "add table "+fam.family+" t; delete table "+fam.family+" t; add table "+fam.family+" t;"+
					"add chain "+fam.family+" t o { type nat hook output priority -100; };"+
					"add rule "+fam.family+" t o tcp dport 80 dnat to "+to+";"+
					"add chain "+fam.family+" t i { type filter hook input priority 0; };"+drop)
			}
			rules(fam.going, "")
			established, err := net.Dial("tcp", fam.frontend)
			if err != nil {
				t.Fatal(err)
			}
			defer established.Close()

			// From now on the endpoint takes no connections, and says nothing.
			silent := "add rule " + fam.family + " t i " + fam.family + " daddr " + going.String() + " tcp flags & (syn | ack) == syn drop"
			rules(fam.going, silent)
			late := make(chan error, 1)
			go func() {
				c, err := net.DialTimeout("tcp", fam.frontend, 10*time.Second)
				if err == nil {
					err = says(c, 5*time.Second)
					_ = c.Close()
				}
				late <- err
			}()
			half := Scope{Key: key(fam.frontend, model.TCP), Unanswered: true}
			testkit.Eventually(t, 10*time.Second, "one connection without an answer", func() error {
				var found []Flow
				err := conntrack.List(half.filter(), func(e *conntrack.Entry) error { found = append(found, e.Flow); return nil })
				if err == nil && (len(found) != 1 || found[0].Destination != ap(fam.frontend)) {
					err = fmt.Errorf("found %v", found)
				}
				return err
			})
			rules(fam.other, silent)
			n, err := Table{}.Clean(Plan(model.Change{Old: tcp(fam.frontend, fam.going), New: tcp(fam.frontend, fam.other)}, false))
			if err != nil || n != 1 {
				t.Errorf("Clean: %d flows, %v; want 1", n, err)
			}
			if err := <-late; err != nil {
				t.Errorf("the connection that was being made: %v", err)
			}
			if err := says(established, 5*time.Second); err != nil {
				t.Errorf("the established connection: %v", err)
			}
		})
	}
}
