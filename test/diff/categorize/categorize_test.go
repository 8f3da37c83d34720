// SPDX-License-Identifier: Apache-2.0

package categorize

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// cases is how many random Services are compared; seed makes them the same.
const cases = 200_000

// peerEndpoint is an endpoint as kube-proxy sees it.
type peerEndpoint struct {
	addr                        netip.AddrPort
	local                       bool
	ready, serving, terminating bool
	zones, nodes                sets.Set[string]
}

func (e peerEndpoint) String() string              { return e.addr.String() }
func (e peerEndpoint) IP() string                  { return e.addr.Addr().String() }
func (e peerEndpoint) Port() int                   { return int(e.addr.Port()) }
func (e peerEndpoint) IsLocal() bool               { return e.local }
func (e peerEndpoint) IsReady() bool               { return e.ready }
func (e peerEndpoint) IsServing() bool             { return e.serving }
func (e peerEndpoint) IsTerminating() bool         { return e.terminating }
func (e peerEndpoint) ZoneHints() sets.Set[string] { return e.zones }
func (e peerEndpoint) NodeHints() sets.Set[string] { return e.nodes }

// peerPort is a Service port; only the policies are asked for.
type peerPort struct {
	proxy.ServicePort
	externalLocal, internalLocal, external bool
}

func (p peerPort) String() string             { return "case" }
func (p peerPort) ExternalPolicyLocal() bool  { return p.externalLocal }
func (p peerPort) InternalPolicyLocal() bool  { return p.internalLocal }
func (p peerPort) ExternallyAccessible() bool { return p.external }
func (p peerPort) UsesClusterEndpoints() bool { return !p.internalLocal || p.external }
func (p peerPort) UsesLocalEndpoints() bool   { return p.internalLocal || p.externalLocal && p.external }

// example is one random case.
type example struct {
	svc   *corev1.Service
	slice *discoveryv1.EndpointSlice
	zone  string
}

func maybe(r *rand.Rand, percent int) *bool {
	if r.IntN(4) == 0 {
		return nil
	}
	return ptr.To(r.IntN(100) < percent)
}

func random(r *rand.Rand) example {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "case"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.10", ClusterIPs: []string{"10.96.0.10"},
			Ports: []corev1.ServicePort{{Name: "p", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	if r.IntN(3) > 0 {
		svc.Spec.Type = corev1.ServiceTypeNodePort
		svc.Spec.Ports[0].NodePort = 30080
		if r.IntN(2) == 0 {
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
	}
	if r.IntN(3) == 0 {
		svc.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "case-1"}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("p"), Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	// How likely each property is differs from case to case, so that "all of
	// them" and "none of them" happen.
	ready, serving, terminating := r.IntN(101), r.IntN(101), r.IntN(101)
	zoneHints, nodeHints, local := r.IntN(5)*25, r.IntN(5)*25, r.IntN(101)
	for i := range r.IntN(7) {
		ep := discoveryv1.Endpoint{
			Addresses:  []string{fmt.Sprintf("10.244.0.%d", i+1)},
			Conditions: discoveryv1.EndpointConditions{Ready: maybe(r, ready), Serving: maybe(r, serving), Terminating: maybe(r, terminating)},
		}
		switch {
		case r.IntN(100) < local:
			ep.NodeName = ptr.To("node-1")
		case r.IntN(10) > 0:
			ep.NodeName = ptr.To("node-2")
		}
		hints := &discoveryv1.EndpointHints{}
		if r.IntN(100) < zoneHints {
			for _, z := range []string{"a", "b", ""}[:1+r.IntN(3)] {
				if r.IntN(2) == 0 {
					hints.ForZones = append(hints.ForZones, discoveryv1.ForZone{Name: z})
				}
			}
		}
		if r.IntN(100) < nodeHints {
			for _, n := range []string{"node-1", "node-2"} {
				if r.IntN(2) == 0 {
					hints.ForNodes = append(hints.ForNodes, discoveryv1.ForNode{Name: n})
				}
			}
		}
		if r.IntN(5) > 0 {
			ep.Hints = hints
		}
		sl.Endpoints = append(sl.Endpoints, ep)
	}
	return example{svc, sl, []string{"a", "b", "c", ""}[r.IntN(4)]}
}

func peerEndpoints(sl *discoveryv1.EndpointSlice) []proxy.Endpoint {
	var eps []proxy.Endpoint
	for _, e := range sl.Endpoints {
		p := peerEndpoint{
			addr:        netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), 8080),
			local:       e.NodeName != nil && *e.NodeName == "node-1",
			ready:       e.Conditions.Ready == nil || *e.Conditions.Ready,
			serving:     e.Conditions.Serving == nil || *e.Conditions.Serving,
			terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
		}
		if e.Hints != nil {
			p.zones, p.nodes = sets.New[string](), sets.New[string]()
			for _, z := range e.Hints.ForZones {
				p.zones.Insert(z.Name)
			}
			for _, n := range e.Hints.ForNodes {
				p.nodes.Insert(n.Name)
			}
		}
		eps = append(eps, p)
	}
	return eps
}

// verdict is what a frontend does: "Forward a b", "Drop", "Reject".
func verdict(addrs []string, any bool) string {
	switch {
	case len(addrs) > 0:
		slices.Sort(addrs)
		return "Forward " + strings.Join(addrs, " ")
	case any:
		return "Drop"
	}
	return "Reject"
}

func peerVerdicts(e example) (internal, external string) {
	port := peerPort{
		externalLocal: e.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
		internalLocal: e.svc.Spec.InternalTrafficPolicy != nil && *e.svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		external:      e.svc.Spec.Type == corev1.ServiceTypeNodePort,
	}
	labels := map[string]string{}
	if e.zone != "" {
		labels[corev1.LabelTopologyZone] = e.zone
	}
	cluster, local, _, any := proxy.CategorizeEndpoints(peerEndpoints(e.slice), port, "node-1", labels)
	addrs := func(eps []proxy.Endpoint) []string {
		var out []string
		for _, ep := range eps {
			out = append(out, ep.String())
		}
		return out
	}
	pick := func(isLocal bool) string {
		if isLocal {
			return verdict(addrs(local), any)
		}
		return verdict(addrs(cluster), any)
	}
	internal = pick(port.internalLocal)
	if port.external {
		external = pick(port.externalLocal)
	}
	return internal, external
}

func ourVerdicts(t *testing.T, e example) (internal, external string) {
	svc, problems := model.ComputeService(
		model.Input{Service: e.svc, Slices: []*discoveryv1.EndpointSlice{e.slice}}, model.Node{Name: "node-1", Zone: e.zone})
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	for _, f := range svc.Frontends {
		var addrs []string
		for _, ep := range f.Outside.Endpoints {
			addrs = append(addrs, ep.AddrPort.String())
		}
		v := verdict(addrs, f.Outside.Action == model.Drop)
		if f.Kind == model.NodePort {
			external = v
		} else {
			internal = v
		}
	}
	return internal, external
}

func TestModelChoosesAsKubeProxy(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	seen := map[string]int{}
	for i := range cases {
		e := random(r)
		wantInternal, wantExternal := peerVerdicts(e)
		internal, external := ourVerdicts(t, e)
		if internal != wantInternal || external != wantExternal {
			t.Fatalf("case %d, zone %q: internal %q, external %q; kube-proxy: %q, %q\n%+v\n%+v",
				i, e.zone, internal, external, wantInternal, wantExternal, e.svc.Spec, e.slice.Endpoints)
		}
		kind, _, _ := strings.Cut(internal, " ")
		other, _, _ := strings.Cut(external, " ")
		seen[kind+"/"+other]++
	}
	// Cases that never come up prove nothing.
	for _, kind := range []string{"Forward/", "Reject/", "Drop/", "Forward/Forward", "Forward/Drop", "Drop/Forward", "Drop/Drop", "Reject/Reject"} {
		if seen[kind] < cases/1000 {
			t.Errorf("only %d cases of %s", seen[kind], kind)
		}
	}
	t.Logf("%d cases: %v", cases, seen)
}
