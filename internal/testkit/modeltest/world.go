// SPDX-License-Identifier: Apache-2.0

package modeltest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// World is a cluster that changes.
type World struct {
	rand   *rand.Rand
	Node   model.Node
	inputs map[types.NamespacedName]model.Input
	made   int
}

// New gives an empty World.
func New(seed uint64) *World {
	return &World{
		rand: rand.New(rand.NewPCG(seed, 7)),
		Node: model.Node{
			Name: "node-1", Zone: "zone-a",
			PodCIDRs:         []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
			ExternalIPRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		},
		inputs: map[types.NamespacedName]model.Input{},
	}
}

// Snapshot is the present state, in an order of its own each time.
func (w *World) Snapshot() model.Snapshot {
	s := model.Snapshot{Node: w.Node}
	for _, name := range slices.SortedFunc(maps.Keys(w.inputs), compare) {
		s.Services = append(s.Services, w.inputs[name])
	}
	w.rand.Shuffle(len(s.Services), func(i, j int) { s.Services[i], s.Services[j] = s.Services[j], s.Services[i] })
	return s
}

func compare(a, b types.NamespacedName) int {
	if a.String() < b.String() {
		return -1
	}
	return 1
}

// Names lists the Services.
func (w *World) Names() []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(w.inputs), compare)
}

// Input gives one Service.
func (w *World) Input(name types.NamespacedName) (model.Input, bool) {
	in, ok := w.inputs[name]
	return in, ok
}

// Change does one random thing and names the Service that it was done to.
func (w *World) Change() types.NamespacedName {
	names := w.Names()
	if n := w.rand.IntN(10); len(names) > 0 && n < 7 {
		name := names[w.rand.IntN(len(names))]
		switch {
		case n == 0:
			delete(w.inputs, name)
		case n == 1:
			in := w.inputs[name]
			w.inputs[name] = model.Input{Service: w.service(in.Service.Name), Slices: in.Slices}
		default:
			in := w.inputs[name]
			w.inputs[name] = model.Input{Service: in.Service, Slices: w.slices(in.Service)}
		}
		return name
	}
	w.made++
	svc := w.service(fmt.Sprintf("svc-%d", w.made))
	name := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	w.inputs[name] = model.Input{Service: svc, Slices: w.slices(svc)}
	return name
}

func (w *World) chance(percent int) bool { return w.rand.IntN(100) < percent }

// service draws from few addresses and ports, so that Services meet.
func (w *World) service(name string) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{},
			CreationTimestamp: metav1.NewTime(time.Unix(int64(w.rand.IntN(5)), 0)),
		},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	w.addresses(&svc.Spec)
	if w.chance(5) {
		svc.Spec.Type = corev1.ServiceTypeExternalName
	}
	if w.chance(3) {
		svc.Labels[model.ServiceProxyNameLabel] = "other"
	}
	for i := range 1 + w.rand.IntN(3) {
		p := corev1.ServicePort{
			Name: fmt.Sprintf("p%d", i), Port: int32(80 + w.rand.IntN(4)), NodePort: int32(30000 + w.rand.IntN(30)),
			Protocol: w.protocol(),
		}
		if w.chance(20) {
			p.NodePort = 0
		}
		svc.Spec.Ports = append(svc.Spec.Ports, p)
	}
	w.policies(&svc.Spec)
	for range w.rand.IntN(3) {
		svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: fmt.Sprintf("192.0.2.%d", 200+w.rand.IntN(8))})
	}
	return svc
}

// protocol is mostly one that there is.
func (w *World) protocol() corev1.Protocol {
	switch n := w.rand.IntN(100); {
	case n < 50:
		return corev1.ProtocolTCP
	case n < 75:
		return corev1.ProtocolUDP
	case n < 95:
		return corev1.ProtocolSCTP
	}
	return "QUIC"
}

func (w *World) addresses(spec *corev1.ServiceSpec) {
	v4, v6 := fmt.Sprintf("10.96.0.%d", 1+w.rand.IntN(60)), fmt.Sprintf("fd00:10:96::%x", 1+w.rand.IntN(60))
	spec.ClusterIPs = [][]string{{v4}, {v6}, {v4, v6}, {v6, v4}}[w.rand.IntN(4)]
	if w.chance(15) {
		spec.ClusterIPs = [][]string{{"None"}, {"nonsense"}, {"0.0.0.0"}, {v4, "::"}, {v4, v6 + "%eth0"}, {"127.0.0.1"}}[w.rand.IntN(6)]
	}
	spec.ClusterIP = spec.ClusterIPs[0]
	if w.chance(20) {
		spec.ExternalIPs = []string{fmt.Sprintf("198.51.100.%d", w.rand.IntN(5)), "203.0.113.1"}
	}
}

func (w *World) policies(spec *corev1.ServiceSpec) {
	if w.chance(30) {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		spec.HealthCheckNodePort = int32(32000 + w.rand.IntN(100))
	}
	if w.chance(15) {
		spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}
	if w.chance(25) {
		spec.SessionAffinity = corev1.ServiceAffinityClientIP
		spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{
			TimeoutSeconds: ptr.To([]int32{1, 10800, 86400}[w.rand.IntN(3)]),
		}}
	}
	if w.chance(25) {
		spec.LoadBalancerSourceRanges = [][]string{
			{"192.0.2.0/24"}, {"192.0.2.0/24", "192.0.2.64/26", "10.0.0.0/8"}, {"0.0.0.0/0"}, {"2001:db8::/32"}, {"nonsense"},
		}[w.rand.IntN(5)]
	}
}

// slices draws endpoints for all ports, some twice.
func (w *World) slices(svc *corev1.Service) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for i := range w.rand.IntN(4) {
		v6 := w.chance(40)
		sl := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: fmt.Sprintf("%s-%d", svc.Name, i)},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		if w.chance(10) {
			sl.Annotations = map[string]string{model.WeightAnnotation: []string{"3", "100", "nonsense"}[w.rand.IntN(3)]}
		}
		if v6 {
			sl.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, p := range svc.Spec.Ports {
			sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: ptr.To(p.Name), Port: ptr.To(p.Port + 8000), Protocol: ptr.To(p.Protocol)})
		}
		n := w.rand.IntN(6)
		if w.chance(5) {
			n = 60 + w.rand.IntN(40)
		}
		for range n {
			sl.Endpoints = append(sl.Endpoints, w.endpoint(v6))
		}
		out = append(out, sl)
	}
	return out
}

func (w *World) endpoint(v6 bool) discoveryv1.Endpoint {
	node, host := 1+w.rand.IntN(3), 1+w.rand.IntN(100)
	addr := fmt.Sprintf("10.244.%d.%d", node, host)
	if v6 {
		addr = fmt.Sprintf("fd00:10:244:%d::%x", node, host)
	}
	if w.chance(1) {
		addr = "nonsense"
	}
	ep := discoveryv1.Endpoint{
		Addresses: []string{addr}, NodeName: ptr.To(fmt.Sprintf("node-%d", node)),
		Conditions: discoveryv1.EndpointConditions{
			Ready: w.maybe(80), Serving: w.maybe(80), Terminating: w.maybe(20),
		},
	}
	if w.chance(30) {
		ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: []string{"zone-a", "zone-b"}[w.rand.IntN(2)]}}}
	}
	return ep
}

func (w *World) maybe(percent int) *bool {
	if w.chance(10) {
		return nil
	}
	return ptr.To(w.chance(percent))
}
