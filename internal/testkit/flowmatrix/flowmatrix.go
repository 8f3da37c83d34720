// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Place is where something runs.
type Place string

// The places of the drawing in the package's documentation.
const (
	Client   Place = "client"
	Stranger Place = "stranger"
	Node1    Place = "node-1"
	Node2    Place = "node-2"
	A        Place = "A"
	B        Place = "B"
	X        Place = "X"
	C        Place = "C"
	D        Place = "D"
)

// Loopback is Node1 dialling from and to 127.0.0.1 or ::1.
const Loopback Place = "loopback"

// Addr gives a place's address.
func (p Place) Addr(f model.Family) netip.Addr {
	a := map[Place][2]string{
		Client:   {"192.0.2.100", "2001:db8:0:1::100"},
		Stranger: {"192.0.2.101", "2001:db8:0:1::101"},
		Node1:    {"192.0.2.11", "2001:db8:0:1::11"},
		Node2:    {"192.0.2.12", "2001:db8:0:1::12"},
		A:        {"10.244.1.2", "fd00:10:244:1::2"},
		B:        {"10.244.1.3", "fd00:10:244:1::3"},
		X:        {"10.244.1.9", "fd00:10:244:1::9"},
		C:        {"10.244.2.2", "fd00:10:244:2::2"},
		D:        {"10.244.2.9", "fd00:10:244:2::9"},
		Loopback: {"127.0.0.1", "::1"},
	}[p]
	return pickFamily(f, a[0], a[1])
}

func pickFamily(f model.Family, v4, v6 string) netip.Addr {
	if f == model.IPv4 {
		return netip.MustParseAddr(v4)
	}
	return netip.MustParseAddr(v6)
}

// onNode1 says whether packets from p begin on node-1 itself.
func (p Place) onNode1() bool { return p == Node1 || p == Loopback }

// node is where an endpoint at p runs.
func (p Place) node() string {
	if p == C || p == D || p == Node2 {
		return "node-2"
	}
	return "node-1"
}

// To is what is dialled.
type To string

// What can be dialled. NodePorts are dialled at an address.
const (
	ClusterIP   To = "ClusterIP"
	LoadBalance To = "load balancer IP"
	Foreign     To = "load balancer IP of node-2" // an address of its own
	External    To = "external IP"
	NodePort    To = "NodePort"             // at node-1's address
	NodePort2   To = "NodePort at .21"      // at its second address
	LocalPort   To = "NodePort at loopback" // 127.0.0.1, ::1
	PodItself   To = "A directly"           // no Service at all
)

func (t To) addr(f model.Family) netip.Addr {
	a := map[To][2]string{
		ClusterIP:   {"10.96.0.10", "fd00:10:96::10"},
		LoadBalance: {"192.0.2.200", "2001:db8:0:1::200"},
		Foreign:     {"192.0.2.22", "2001:db8:0:1::22"},
		External:    {"198.51.100.10", "2001:db8:198::10"},
		NodePort:    {"192.0.2.11", "2001:db8:0:1::11"},
		NodePort2:   {"192.0.2.21", "2001:db8:0:1::21"},
		LocalPort:   {"127.0.0.1", "::1"},
		PodItself:   {"10.244.1.2", "fd00:10:244:1::2"},
	}[t]
	return pickFamily(f, a[0], a[1])
}

// host is who answers there at endpointPort if no Service has the packet.
func (t To) host() Place { return map[To]Place{PodItself: A, Foreign: Node2}[t] }

func (t To) isNodePort() bool { return t == NodePort || t == NodePort2 || t == LocalPort }

const (
	servicePort  = 80
	endpointPort = 8080
	nodePort     = 30080
)

// Want is what must happen.
type Want struct {
	// Action is Forward to To, Reject or Drop; Untouched lets the packet pass.
	Action    model.Action
	Untouched bool
	// To are all endpoints that must get connections, none other.
	To []Place
	// Masquerade are those of them that see an address of node-1.
	Masquerade []Place
	// Sticky: one client always gets the same one of To.
	Sticky bool
}

// String reads like the table.
func (w Want) String() string {
	if w.Untouched {
		return "untouched"
	}
	if w.Action != model.Forward {
		return w.Action.String()
	}
	s := fmt.Sprintf("to %v", w.To)
	if len(w.Masquerade) > 0 {
		s += fmt.Sprintf(" masqueraded %v", w.Masquerade)
	}
	if w.Sticky {
		s += " sticky"
	}
	return s
}

func to(ps ...Place) Want { return Want{To: ps} }

func (w Want) masq(ps ...Place) Want { w.Masquerade = ps; return w }
func (w Want) sticky() Want          { w.Sticky = true; return w }

var (
	rejected  = Want{Action: model.Reject}
	dropped   = Want{Action: model.Drop}
	untouched = Want{Untouched: true}
)

// Row is one flow.
type Row struct {
	Name string
	// Setup changes the Service, its endpoints or the node.
	Setup []Option
	From  Place
	To    To
	// Also is dialled in turn with To, by rows about affinity: all frontends of a
	// Service port have one.
	Also []To
	// Bound: somebody has added To to node-1's loopback interface, so that it is
	// the source of what the node sends there.
	Bound bool
	// Port differs from the Service's if not 0; Protocol is TCP if 0.
	Port     uint16
	Protocol model.Protocol
	Want     Want
	// Family restricts the row if not 0.
	Family model.Family
}

// Scene is what a row's flow meets.
type Scene struct {
	Node      model.Node
	Service   *corev1.Service
	Endpoints []endpoint
	family    model.Family
}

type endpoint struct {
	at Place
	ready, serving,
	terminating bool
	zone, node string
}

// Option changes a Scene.
type Option func(*Scene)

// Families gives the families in which a row is run.
func (r *Row) Families() []model.Family {
	if r.Family != 0 {
		return []model.Family{r.Family}
	}
	return model.Families[:]
}

// Proto is the row's protocol.
func (r *Row) Proto() model.Protocol {
	if r.Protocol == 0 {
		return model.TCP
	}
	return r.Protocol
}

// DestinationPort is the port that the row dials.
func (r *Row) DestinationPort() uint16 { return r.portOf(r.To) }

func (r *Row) portOf(to To) uint16 {
	switch {
	case r.Port != 0:
		return r.Port
	case to.isNodePort():
		return nodePort
	case to == PodItself:
		return endpointPort
	}
	return servicePort
}

// Source is the address that the row's client sends from. node-1 uses its
// second one: a masqueraded connection shows the first.
func (r *Row) Source(f model.Family) netip.Addr {
	if r.Bound && r.From == Node1 {
		return r.To.addr(f)
	}
	if r.From == Node1 {
		return NodePort2.addr(f)
	}
	return r.From.Addr(f)
}

// Packet is the row's first packet at node-1.
func (r *Row) Packet(f model.Family) inspect.Packet {
	p := inspect.Packet{
		Source: r.Source(f), Destination: r.To.addr(f), Port: r.DestinationPort(), Protocol: r.Proto(),
		Self: r.From.onNode1(), ToSelf: r.To.isNodePort() || r.Bound,
	}
	if r.From == A || r.From == B || r.From == X {
		p.Interface = "pod-" + strings.ToLower(string(r.From))
	}
	return p
}

// Snapshot is the row's Service and node, as the API has them.
func (r *Row) Snapshot(f model.Family) model.Snapshot {
	s := &Scene{
		family: f,
		Node: model.Node{
			Name: "node-1", Zone: "zone-a",
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
			ExternalIPRanges: []netip.Prefix{
				netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:198::/64"),
			},
		},
		Service: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{}},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: ClusterIP.addr(f).String(),
				ClusterIPs:  []string{ClusterIP.addr(f).String()},
				ExternalIPs: []string{External.addr(f).String()},
				Ports: []corev1.ServicePort{{
					Name: "web", Port: servicePort, NodePort: nodePort, Protocol: corev1.Protocol(r.Proto().String()),
				}},
				HealthCheckNodePort: 31000,
			},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{
				Ingress: []corev1.LoadBalancerIngress{{IP: LoadBalance.addr(f).String()}},
			}},
		},
	}
	for _, o := range r.Setup {
		o(s)
	}
	return model.Snapshot{Node: s.Node, Services: []model.Input{{Service: s.Service, Slices: s.slices()}}}
}

func (s *Scene) slices() []*discoveryv1.EndpointSlice {
	typ := discoveryv1.AddressTypeIPv4
	if s.family == model.IPv6 {
		typ = discoveryv1.AddressTypeIPv6
	}
	port := s.Service.Spec.Ports[0]
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1"},
		AddressType: typ,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(port.Name), Port: ptr.To[int32](endpointPort), Protocol: &port.Protocol}},
	}
	for _, e := range s.Endpoints {
		ep := discoveryv1.Endpoint{
			Addresses:  []string{e.at.Addr(s.family).String()},
			NodeName:   ptr.To(e.at.node()),
			Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.terminating},
		}
		if e.zone != "" {
			ep.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: e.zone}}}
		}
		if e.node != "" {
			if ep.Hints == nil {
				ep.Hints = &discoveryv1.EndpointHints{}
			}
			ep.Hints.ForNodes = []discoveryv1.ForNode{{Name: e.node}}
		}
		sl.Endpoints = append(sl.Endpoints, ep)
	}
	return []*discoveryv1.EndpointSlice{sl}
}

// Options.

func ready(ps ...Place) Option       { return eps(endpoint{ready: true, serving: true}, ps) }
func notReady(ps ...Place) Option    { return eps(endpoint{}, ps) }
func terminating(ps ...Place) Option { return eps(endpoint{serving: true, terminating: true}, ps) }
func dying(ps ...Place) Option       { return eps(endpoint{terminating: true}, ps) }

func inZone(zone string, ps ...Place) Option {
	return eps(endpoint{ready: true, serving: true, zone: zone}, ps)
}

func forNode(node string, ps ...Place) Option {
	return eps(endpoint{ready: true, serving: true, node: node, zone: "zone-a"}, ps)
}

func eps(e endpoint, ps []Place) Option {
	return func(s *Scene) {
		for _, p := range ps {
			e.at = p
			s.Endpoints = append(s.Endpoints, e)
		}
	}
}

func spec(f func(*corev1.ServiceSpec)) Option { return func(s *Scene) { f(&s.Service.Spec) } }

func node(f func(*model.Node)) Option { return func(s *Scene) { f(&s.Node) } }

var (
	externalLocal = spec(func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	internalLocal = spec(func(s *corev1.ServiceSpec) {
		s.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	})
	shared         = Option(func(s *Scene) { s.Service.Annotations = map[string]string{v1alpha1.SharingKeyAnnotation: "k"} })
	masqueradeAll  = node(func(n *model.Node) { n.MasqueradeAll = true })
	localhostPorts = node(func(n *model.Node) { n.LocalhostNodePorts = true })
	byInterface    = node(func(n *model.Node) { n.PodCIDRs, n.PodInterfaces = nil, []string{"pod-*"} })
	noDetection    = node(func(n *model.Node) { n.PodCIDRs = nil })
)

func affinity(d time.Duration) Option {
	return spec(func(s *corev1.ServiceSpec) {
		s.SessionAffinity = corev1.ServiceAffinityClientIP
		s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(int32(d.Seconds()))}}
	})
}

func sourceRanges(rs ...string) Option {
	return spec(func(s *corev1.ServiceSpec) { s.LoadBalancerSourceRanges = rs })
}

func serviceType(t corev1.ServiceType) Option {
	return spec(func(s *corev1.ServiceSpec) { s.Type = t })
}

func nodePortAddresses(rs ...string) Option {
	return node(func(n *model.Node) {
		for _, r := range rs {
			n.NodePortAddresses = append(n.NodePortAddresses, netip.MustParsePrefix(r))
		}
	})
}

func deadNode(name string) Option { return node(func(n *model.Node) { n.DeadNodes = []string{name} }) }

func ipMode(m corev1.LoadBalancerIPMode) Option {
	return func(s *Scene) { s.Service.Status.LoadBalancer.Ingress[0].IPMode = &m }
}

// ingress has a Service's load balancer IP be another one.
func ingress(t To) Option {
	return func(s *Scene) { s.Service.Status.LoadBalancer.Ingress[0].IP = t.addr(s.family).String() }
}

func label(key, value string) Option { return func(s *Scene) { s.Service.Labels[key] = value } }

// PlaceOf finds who has an address.
func PlaceOf(a netip.Addr) Place {
	for _, p := range []Place{Client, Stranger, Node1, Node2, A, B, X, C, D, Loopback} {
		if p.Addr(model.FamilyOf(a)) == a {
			return p
		}
	}
	return Place(a.String())
}

func sortedPlaces(ps []Place) []Place {
	ps = slices.Clone(ps)
	slices.Sort(ps)
	return slices.Compact(ps)
}
