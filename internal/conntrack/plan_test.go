// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// service is one with a frontend of a protocol, to endpoints of other nodes.
func service(name string, proto model.Protocol, frontend string, endpoints ...string) *model.Service {
	svc := tcp(frontend, endpoints...)
	svc.Name = types.NamespacedName{Namespace: "default", Name: name}
	svc.Frontends[0].Protocol = proto
	return svc
}

// ended gives the endpoints, of those that are asked for, at which the flows of a
// client end that have been answered.
func ended(scopes []Scope, node *model.Node, client, frontend string, endpoints ...string) (out []string) {
	at := newPlace(node)
	at.mine[netip.MustParseAddr("192.0.2.11")] = true
	for _, ep := range endpoints {
		if slices.ContainsFunc(scopes, func(s Scope) bool {
			return !s.Unanswered && s.Stale(Flow{Source: ap(client), Destination: ap(frontend), Endpoint: ap(ep)}, at)
		}) {
			out = append(out, ep)
		}
	}
	return out
}

// A frontend that one Service loses and another gains keeps its flows to endpoints
// that both have, in whatever order the two are told, and loses the others.
func TestFrontendChangesHands(t *testing.T) {
	for _, tc := range []struct{ frontend, dialled, a, b, c string }{
		{"192.0.2.200:53", "192.0.2.200:53", "10.244.1.2:53", "10.244.1.3:53", "10.244.1.4:53"},
		{"[2001:db8::200]:53", "[2001:db8::200]:53", "[fd00:10:244:1::2]:53", "[fd00:10:244:1::3]:53", "[fd00:10:244:1::4]:53"},
		{"0.0.0.0:30053", "192.0.2.11:30053", "10.244.1.2:53", "10.244.1.3:53", "10.244.1.4:53"},
	} {
		for _, proto := range []model.Protocol{model.UDP, model.TCP, model.SCTP} {
			blue := service("blue", proto, tc.frontend, tc.a, tc.b)
			green := service("green", proto, tc.frontend, tc.b, tc.c)
			changes := []model.Change{{Name: blue.Name, Old: blue}, {Name: green.Name, New: green}}
			for range 2 {
				slices.Reverse(changes)
				got := ended(PlanAll(changes, true), &model.Node{}, "198.51.100.9:40000", tc.dialled, tc.a, tc.b, tc.c, tc.dialled)
				if diff := cmp.Diff([]string{tc.a, tc.dialled}, got); diff != "" {
					t.Errorf("%s %s, %s first (-want +got):\n%s", proto, tc.frontend, changes[0].Name.Name, diff)
				}
			}
		}
	}
}

// A Service that is deleted and made again under another name a moment later keeps
// its flows; one that is not made again loses them.
func TestCleanerWaitsForWhatIsMadeAgain(t *testing.T) {
	const fe, a, b = "10.96.0.10:53", "10.244.1.2:53", "10.244.1.3:53"
	for _, proto := range []model.Protocol{model.UDP, model.TCP, model.SCTP} {
		for _, again := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				var got []Scope
				cl := NewCleaner(true, nil)
				cl.clean = func(_ *model.Node, s []Scope) (int, error) { got = append(got, s...); return 0, nil }
				ctx, cancel := context.WithCancel(t.Context())
				go func() { _ = cl.Run(ctx) }()
				cl.Changed([]model.Change{{Old: service("old", proto, fe, a, b)}})
				time.Sleep(linger / 2)
				synctest.Wait()
				if len(got) > 0 {
					t.Errorf("%s: flows end while their Service may come back: %+v", proto, got)
				}
				want := []string{a, b}
				if again {
					cl.Changed([]model.Change{{New: service("new", proto, fe, b)}})
					want = []string{a}
				}
				time.Sleep(2 * linger)
				synctest.Wait()
				if diff := cmp.Diff(want, ended(got, &model.Node{}, "198.51.100.9:40000", fe, a, b)); diff != "" {
					t.Errorf("%s, made again %v (-want +got):\n%s", proto, again, diff)
				}
				cancel()
			})
		}
	}
}

// Who is not admitted any more loses the flows there were, and nobody else does.
func TestExcludedClients(t *testing.T) {
	const fe, port, a, b, here = "192.0.2.200:80", "0.0.0.0:30080", "10.244.2.2:80", "10.244.2.3:80", "10.244.1.4:80"
	const excluded, admitted, pod = "198.51.100.9:40000", "203.0.113.9:40000", "10.244.1.9:40000"
	node := model.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	with := func(change ...func(*model.Frontend)) func(model.Protocol, string) *model.Service {
		return func(p model.Protocol, frontend string) *model.Service {
			svc := service("web", p, frontend, a, b)
			svc.Frontends[0].Serving = []netip.AddrPort{ap(here), ap(a), ap(b)} // it ends
			for _, c := range change {
				c(&svc.Frontends[0])
			}
			return svc
		}
	}
	ranges := func(ps ...string) func(*model.Frontend) {
		return func(f *model.Frontend) {
			f.Restricted = true
			for _, p := range ps {
				f.SourceRanges = append(f.SourceRanges, netip.MustParsePrefix(p))
			}
		}
	}
	// local is policy Local from outside, without an endpoint of this node that
	// gets new connections.
	local := func(f *model.Frontend) { f.Outside = &model.Target{Action: model.Drop} }
	internal := func(f *model.Frontend) { f.Outside = &model.Target{Action: model.Drop}; f.Inside = f.Outside }
	nodePort := func(f *model.Frontend) { f.Kind = model.NodePort }
	all, even := []string{a, b}, []string{here, a, b}
	wide, narrow := ranges("198.51.100.0/24", "203.0.113.0/24"), ranges("10.0.0.0/8", "203.0.113.0/25")
	for _, tc := range []struct {
		name                    string
		old, new                func(model.Protocol, string) *model.Service
		frontend, dialled       string
		node                    model.Node
		excluded, admitted, pod []string
	}{
		{name: "narrowed", old: with(wide), new: with(narrow), excluded: even},
		{name: "added", old: with(), new: with(narrow), excluded: even},
		{name: "closed to all", old: with(wide), new: with(ranges()), excluded: even, admitted: even, pod: even},
		{name: "widened", old: with(ranges("203.0.113.0/25", "10.0.0.0/8")), new: with(wide), pod: even},
		{name: "lifted", old: with(narrow), new: with()},
		{name: "unchanged", old: with(narrow), new: with(narrow)},
		{name: "not known what it was", new: with(narrow), excluded: even},
		{name: "policy becomes Local", old: with(), new: with(local), excluded: all, admitted: all},
		{name: "internal policy becomes Local", old: with(), new: with(internal), excluded: all, admitted: all, pod: all},
		{name: "policy is Local all the time", old: with(local), new: with(local)},
		{name: "NodePort, policy becomes Local", old: with(nodePort), new: with(nodePort, local), frontend: port, dialled: "192.0.2.11:30080", excluded: all, admitted: all},
		{name: "NodePorts answer elsewhere since a restart", new: with(nodePort), frontend: port, dialled: "192.0.2.11:30080",
			node: model.Node{NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}, excluded: even, admitted: even, pod: even},
		{name: "NodePorts answer here since a restart", new: with(nodePort), frontend: port, dialled: "192.0.2.11:30080",
			node: model.Node{NodePortAddresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
	} {
		for _, proto := range []model.Protocol{model.UDP, model.SCTP, model.TCP} {
			frontend, dialled := fe, fe
			if tc.frontend != "" {
				frontend, dialled = tc.frontend, tc.dialled
			}
			change := model.Change{New: tc.new(proto, frontend)}
			if tc.old != nil {
				change.Old = tc.old(proto, frontend)
			}
			at := node
			at.NodePortAddresses = tc.node.NodePortAddresses
			for client, want := range map[string][]string{excluded: tc.excluded, admitted: tc.admitted, pod: tc.pod} {
				if diff := cmp.Diff(want, ended(Plan(change, true), &at, client, dialled, here, a, b)); diff != "" {
					t.Errorf("%s, %s from %s (-want +got):\n%s", tc.name, proto, client, diff)
				}
			}
			// Without resets TCP connections go on, but those that never came about.
			for _, s := range Plan(change, false) {
				if proto == model.TCP && !s.Unanswered {
					t.Errorf("%s: ends TCP connections without being asked to: %+v", tc.name, s)
				}
			}
		}
	}
}
