// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

var plain = inspect.Mode{Name: "plain", Families: model.Families[:]}

// row returns what the model computes of a row of the flow matrix, and its packet.
func row(t *testing.T, name string) (model.Desired, inspect.Packet) {
	t.Helper()
	for _, r := range flowmatrix.Rows() {
		if r.Name == name {
			d, _ := model.Compute(r.Snapshot(model.IPv4))
			return d, r.Packet(model.IPv4)
		}
	}
	t.Fatalf("no row %q", name)
	return model.Desired{}, inspect.Packet{}
}

func TestReasons(t *testing.T) {
	for name, want := range map[string]string{
		"source ranges exclude":                      "loadBalancerSourceRanges of the Service do not include 192.0.2.101",
		"load balancer IP without endpoints":         "no endpoint of the Service is ready",
		"external policy Local, none here":           "externalTrafficPolicy is Local and no endpoint on this node is ready or serving; the health check at port 31000 tells load balancers of 0",
		"internal policy Local, none here":           "internalTrafficPolicy is Local",
		"NodePort at an address that is not allowed": "does not answer on 192.0.2.21",
		"external IP that is not allowed":            "is not allowed (agent flag --external-ip-ranges)",
		"load balancer IP, no such port":             "no Service has port 81/TCP at this address",
		"ClusterIP from a Pod here":                  "2 endpoints take connections from inside",
	} {
		d, p := row(t, name)
		if got := inspect.Trace(d, inspect.Expected(d, plain), p).Reason; !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q in it", name, got, want)
		}
	}
}

func TestSteps(t *testing.T) {
	for name, want := range map[string]string{
		"hairpin or neighbour": `A Pod of this node sends the packet: it comes from inside
10.96.0.10:80/TCP belongs to Service default/web port web
50 % of new connections go to 10.244.1.2:8080, masqueraded: the client is the endpoint itself (hairpin)
50 % of new connections go to 10.244.1.3:8080, with the client's address, as replies to Pods of this node return by themselves
`,
		"source ranges admit": `192.0.2.100 is neither this node nor a Pod of it: the packet comes from outside
192.0.2.200:80/TCP belongs to Service default/web port web
loadBalancerSourceRanges include 192.0.2.100
50 % of new connections go to 10.244.1.2:8080, with the client's address, as the endpoint is on this node
50 % of new connections go to 10.244.2.2:8080, masqueraded: replies from another node would not return
`,
	} {
		d, p := row(t, name)
		got := ""
		for _, s := range inspect.Trace(d, inspect.Expected(d, plain), p).Steps {
			got += s.What + "\n"
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A kernel that lacks a fact is told by Diff, and followed by Trace.
func TestKernelThatDiffers(t *testing.T) {
	const name = "ClusterIP from a Pod here"
	key := model.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: model.TCP}
	for _, tc := range []struct {
		change       func(*inspect.State)
		diff, reason string
		verdict      inspect.Verdict
	}{
		{func(s *inspect.State) { delete(s.Frontends, key) }, "default/web port web: missing ClusterIP 10.96.0.10:80/TCP", "the kernel lacks the frontend", inspect.Rejected},
		{func(s *inspect.State) { delete(s.Frontends, key); delete(s.Closed, key.Addr) },
			"default/web port web: missing ClusterIP 10.96.0.10:80/TCP\nmissing refusal of ports without a Service at 10.96.0.10", "the kernel lacks the frontend", inspect.NotService},
		{func(s *inspect.State) { s.Frontends[key].Inside.Endpoints = nil },
			"default/web port web: missing endpoint 10.244.1.2:8080 of ClusterIP 10.96.0.10:80/TCP\ndefault/web port web: missing endpoint 10.244.2.2:8080 of ClusterIP 10.96.0.10:80/TCP",
			"the kernel lacks the endpoints", inspect.Dropped},
		{func(s *inspect.State) { s.Frontends[key].Inside.Action = model.Reject }, "default/web port web: other action of ClusterIP 10.96.0.10:80/TCP: Reject instead of Forward", "no endpoint", inspect.Rejected},
		{func(s *inspect.State) {
			s.Rejected[types.NamespacedName{Namespace: "default", Name: "web"}] = "too large"
		}, "default/web other state: the kernel rejects changes of the Service: too large", "2 endpoints", inspect.Forwarded},
		{func(s *inspect.State) { s.LocalPods = nil }, "missing 10.244.1.0-10.244.1.255 in Pods of this node\nmissing fd00:10:244:1::-fd00:10:244:1:ffff:ffff:ffff:ffff in Pods of this node", "from outside", inspect.Forwarded},
	} {
		d, p := row(t, name)
		s := inspect.Expected(d, plain)
		tc.change(&s)
		var lines []string
		for _, diff := range inspect.Diff(d, s) {
			lines = append(lines, diff.String())
		}
		if diff := cmp.Diff(tc.diff, strings.Join(lines, "\n")); diff != "" {
			t.Errorf("differences (-want +got):\n%s", diff)
		}
		if path := inspect.Trace(d, s, p); path.Verdict != tc.verdict || !strings.Contains(path.Reason, tc.reason) {
			t.Errorf("%s: %s, want %s: %s", path.Verdict, path.Reason, tc.verdict, tc.reason)
		}
	}
}

// Whatever the Services and the packet are, what should happen is told, in all kinds of
// modes, and a kernel that has it has no differences.
func TestRandomPackets(t *testing.T) {
	modes := []inspect.Mode{plain, {}, {Families: model.Families[:], Local: true}, {Families: model.Families[:], Proxies: true}}
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := modeltest.New(seed)
		for range 60 {
			w.Change()
		}
		d, _ := model.Compute(w.Snapshot())
		var keys []model.Key
		var addrs []netip.Addr
		for _, svc := range d.Services {
			for _, f := range svc.Frontends {
				keys = append(keys, f.Key)
				for _, e := range f.Inside.Endpoints {
					addrs = append(addrs, e.AddrPort.Addr())
				}
			}
		}
		addrs = append(addrs, netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("::1"), netip.MustParseAddr("127.0.0.1"))
		for _, m := range modes {
			s := inspect.Expected(d, m)
			for _, diff := range inspect.Diff(d, s) {
				t.Fatalf("seed %d: %s", seed, diff)
			}
			for range 200 {
				k := keys[rnd.IntN(len(keys))]
				p := inspect.Packet{Source: addrs[rnd.IntN(len(addrs))], Destination: k.Addr, Port: k.Port + uint16(rnd.IntN(8)/7), Protocol: k.Protocol,
					Self: rnd.IntN(2) == 0, ToSelf: rnd.IntN(2) == 0}
				path := inspect.Trace(d, s, p)
				sum := 0.0
				for _, hop := range path.Endpoints {
					sum += hop.Share
				}
				if path.Reason == "" || len(path.Steps) == 0 || (path.Verdict == inspect.Forwarded) != (sum > 0.999 && sum < 1.001) {
					t.Fatalf("seed %d: %+v leads to %+v", seed, p, path)
				}
			}
		}
	}
}
