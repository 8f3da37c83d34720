// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Rows is the table. Names are unique.
func Rows() []Row {
	return slices.Concat(
		clusterIPRows(), externalRows(), foreignRows(), localPolicyRows(), hairpinRows(), readinessRows(), topologyRows(),
		affinityRows(), sourceRangeRows(), nodePortRows(), selectionRows(), protocolRows(), masqueradeRows(),
	)
}

type setup = []Option

func clusterIPRows() []Row {
	both := setup{ready(A, C)}
	return []Row{
		{Name: "ClusterIP from a Pod here", Setup: both, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "ClusterIP from the node", Setup: both, From: Node1, To: ClusterIP, Want: to(A, C).masq(C)},
		{Name: "ClusterIP from outside", Setup: both, From: Client, To: ClusterIP, Want: to(A, C).masq(C)},
		{Name: "ClusterIP from another node", Setup: both, From: Node2, To: ClusterIP, Want: to(A, C).masq(C)},
		{Name: "ClusterIP from a Pod of another node", Setup: both, From: D, To: ClusterIP, Want: to(A, C).masq(C)},
		{Name: "ClusterIP, one endpoint here", Setup: setup{ready(A)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "ClusterIP, one endpoint there", Setup: setup{ready(C)}, From: X, To: ClusterIP, Want: to(C)},
		{Name: "ClusterIP, three endpoints", Setup: setup{ready(A, B, C)}, From: X, To: ClusterIP, Want: to(A, B, C)},
		{Name: "ClusterIP, endpoint is this node", Setup: setup{ready(Node1)}, From: X, To: ClusterIP, Want: to(Node1)},
		{Name: "ClusterIP, endpoint is this node, from it", Setup: setup{ready(Node1)}, From: Node1, To: ClusterIP, Want: to(Node1)},
		{Name: "ClusterIP, endpoint is another node", Setup: setup{ready(Node2)}, From: X, To: ClusterIP, Want: to(Node2)},
		{Name: "ClusterIP, endpoint is another node, from this one", Setup: setup{ready(Node2)}, From: Node1, To: ClusterIP, Want: to(Node2).masq(Node2)},
		{Name: "ClusterIP without endpoints from a Pod", From: X, To: ClusterIP, Want: rejected},
		{Name: "ClusterIP without endpoints from the node", From: Node1, To: ClusterIP, Want: rejected},
		{Name: "ClusterIP without endpoints from outside", From: Client, To: ClusterIP, Want: rejected},
		{Name: "ClusterIP, no such port, from a Pod", Setup: both, From: X, To: ClusterIP, Port: 81, Want: rejected},
		{Name: "ClusterIP, no such port, from the node", Setup: both, From: Node1, To: ClusterIP, Port: 81, Want: rejected},
		{Name: "ClusterIP, no such protocol", Setup: both, From: X, To: ClusterIP, Protocol: model.TCP, Port: nodePort, Want: rejected},
		{Name: "a Pod directly", Setup: both, From: X, To: PodItself, Want: untouched},
	}
}

func externalRows() []Row {
	both := setup{ready(A, C)}
	return []Row{
		{Name: "load balancer IP from outside", Setup: both, From: Client, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "load balancer IP from a Pod here", Setup: both, From: X, To: LoadBalance, Want: to(A, C)},
		{Name: "load balancer IP from the node", Setup: both, From: Node1, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "load balancer IP from another node", Setup: both, From: Node2, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "load balancer IP from a Pod of another node", Setup: both, From: D, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "load balancer IP without endpoints", From: Client, To: LoadBalance, Want: rejected},
		{Name: "load balancer IP without endpoints from a Pod", From: X, To: LoadBalance, Want: rejected},
		{Name: "load balancer IP, no such port", Setup: both, From: Client, To: LoadBalance, Port: 81, Want: rejected},
		{Name: "load balancer IP behind a proxy", Setup: setup{ready(A), ipMode(corev1.LoadBalancerIPModeProxy)}, From: Client, To: LoadBalance, Want: untouched},
		{Name: "load balancer IP, mode VIP", Setup: setup{ready(A), ipMode(corev1.LoadBalancerIPModeVIP)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "external IP from outside", Setup: both, From: Client, To: External, Want: to(A, C).masq(C)},
		{Name: "external IP from a Pod here", Setup: both, From: X, To: External, Want: to(A, C)},
		{Name: "external IP from the node", Setup: both, From: Node1, To: External, Want: to(A, C).masq(C)},
		{Name: "external IP from a Pod of another node", Setup: both, From: D, To: External, Want: to(A, C).masq(C)},
		{Name: "external IP without endpoints", From: Client, To: External, Want: rejected},
		{Name: "external IP that is not allowed", Setup: append(setup{node(func(n *model.Node) { n.ExternalIPRanges = nil })}, both...), From: Client, To: External, Want: untouched},
		{Name: "NodePort from outside", Setup: both, From: Client, To: NodePort, Want: to(A, C).masq(C)},
		{Name: "NodePort from a Pod here", Setup: both, From: X, To: NodePort, Want: to(A, C)},
		{Name: "NodePort from the node", Setup: both, From: Node1, To: NodePort, Want: to(A, C).masq(C)},
		{Name: "NodePort from another node", Setup: both, From: Node2, To: NodePort, Want: to(A, C).masq(C)},
		{Name: "NodePort from a Pod of another node", Setup: both, From: D, To: NodePort, Want: to(A, C).masq(C)},
		{Name: "NodePort, endpoint is the client's own node", Setup: setup{ready(C)}, From: D, To: NodePort, Want: to(C).masq(C)},
		{Name: "NodePort, endpoint is this node", Setup: setup{ready(Node1)}, From: Client, To: NodePort, Want: to(Node1)},
		{Name: "NodePort, endpoint is another node", Setup: setup{ready(Node2)}, From: Client, To: NodePort, Want: to(Node2).masq(Node2)},
		{Name: "NodePort without endpoints", From: Client, To: NodePort, Want: rejected},
		{Name: "NodePort without endpoints from a Pod", From: X, To: NodePort, Want: rejected},
	}
}

// foreignRows: load balancer IPs that are another host's own, where that host
// answers at other ports.
func foreignRows() []Row {
	foreign := func(o ...Option) setup { return append(setup{ingress(Foreign), ready(A, C)}, o...) }
	return []Row{
		{Name: "another host's load balancer IP from a Pod here", Setup: foreign(), From: X, To: Foreign, Want: to(A, C)},
		{Name: "another host's load balancer IP from the node", Setup: foreign(), From: Node1, To: Foreign, Want: to(A, C).masq(C)},
		{Name: "another host's load balancer IP from outside", Setup: foreign(), From: Client, To: Foreign, Want: to(A, C).masq(C)},
		{Name: "another host's load balancer IP, no such port, from a Pod here", Setup: foreign(), From: X, To: Foreign, Port: endpointPort, Want: untouched},
		{Name: "another host's load balancer IP, no such port, from the node", Setup: foreign(), From: Node1, To: Foreign, Port: endpointPort, Want: untouched},
		{Name: "another host's load balancer IP, no such port, from outside", Setup: foreign(), From: Client, To: Foreign, Port: endpointPort, Want: rejected},
		{Name: "another host's load balancer IP, no such UDP port, from outside", Setup: foreign(), From: Client, To: Foreign, Protocol: model.UDP, Port: endpointPort, Want: rejected},
		{Name: "another host's load balancer IP, no such port, policy Local, from a Pod here", Setup: foreign(externalLocal), From: X, To: Foreign, Port: endpointPort, Want: untouched},
		{Name: "another host's load balancer IP, no such port, policy Local, from outside", Setup: foreign(externalLocal), From: Client, To: Foreign, Port: endpointPort, Want: rejected},
		{Name: "another host's load balancer IP, no such port, Pods known by interface", Setup: foreign(byInterface), From: X, To: Foreign, Port: endpointPort, Want: untouched},
		{Name: "another host's load balancer IP, no such port, Pods not known", Setup: foreign(noDetection), From: X, To: Foreign, Port: endpointPort, Want: rejected},
	}
}

func localPolicyRows() []Row {
	ext := func(o ...Option) setup { return append(setup{externalLocal}, o...) }
	in := func(o ...Option) setup { return append(setup{internalLocal}, o...) }
	return []Row{
		{Name: "external policy Local from outside", Setup: ext(ready(A, C)), From: Client, To: LoadBalance, Want: to(A)},
		{Name: "external policy Local, two here", Setup: ext(ready(A, B, C)), From: Client, To: LoadBalance, Want: to(A, B)},
		{Name: "external policy Local, none here", Setup: ext(ready(C)), From: Client, To: LoadBalance, Want: dropped},
		{Name: "external policy Local, none at all", Setup: ext(), From: Client, To: LoadBalance, Want: rejected},
		{Name: "external policy Local, shared address, one here", Setup: ext(shared, ready(A, C)), From: Client, To: LoadBalance, Want: to(A)},
		{Name: "external policy Local, shared address, none here", Setup: ext(shared, ready(C)), From: Client, To: LoadBalance, Want: to(C).masq(C)},
		{Name: "external policy Local, shared address, none at all", Setup: ext(shared), From: Client, To: LoadBalance, Want: rejected},
		{Name: "external policy Local, shared address, NodePort, none here", Setup: ext(shared, ready(C)), From: Client, To: NodePort, Want: dropped},
		{Name: "external policy Local from a Pod here", Setup: ext(ready(A, C)), From: X, To: LoadBalance, Want: to(A, C)},
		{Name: "external policy Local, none here, from a Pod here", Setup: ext(ready(C)), From: X, To: LoadBalance, Want: to(C)},
		{Name: "external policy Local from the node", Setup: ext(ready(A, C)), From: Node1, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "external policy Local, none here, from the node", Setup: ext(ready(C)), From: Node1, To: LoadBalance, Want: to(C).masq(C)},
		{Name: "external policy Local from a Pod of another node", Setup: ext(ready(A, C)), From: D, To: LoadBalance, Want: to(A)},
		{Name: "external policy Local, NodePort from outside", Setup: ext(ready(A, C)), From: Client, To: NodePort, Want: to(A)},
		{Name: "external policy Local, NodePort, none here", Setup: ext(ready(C)), From: Client, To: NodePort, Want: dropped},
		{Name: "external policy Local, NodePort from another node", Setup: ext(ready(A, C)), From: Node2, To: NodePort, Want: to(A)},
		{Name: "external policy Local, NodePort from a Pod here", Setup: ext(ready(C)), From: X, To: NodePort, Want: to(C)},
		{Name: "external policy Local, NodePort from the node", Setup: ext(ready(C)), From: Node1, To: NodePort, Want: to(C).masq(C)},
		{Name: "external policy Local, external IP", Setup: ext(ready(A, C)), From: Client, To: External, Want: to(A)},
		{Name: "external policy Local, external IP, none here", Setup: ext(ready(C)), From: Client, To: External, Want: dropped},
		{Name: "external policy Local does not bind the ClusterIP", Setup: ext(ready(A, C)), From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "external policy Local does not bind the ClusterIP from outside", Setup: ext(ready(C)), From: Client, To: ClusterIP, Want: to(C).masq(C)},
		{Name: "internal policy Local", Setup: in(ready(A, C)), From: X, To: ClusterIP, Want: to(A)},
		{Name: "internal policy Local from the node", Setup: in(ready(A, C)), From: Node1, To: ClusterIP, Want: to(A)},
		{Name: "internal policy Local, none here", Setup: in(ready(C)), From: X, To: ClusterIP, Want: dropped},
		{Name: "internal policy Local, none at all", Setup: in(), From: X, To: ClusterIP, Want: rejected},
		{Name: "internal policy Local does not bind the load balancer IP", Setup: in(ready(A, C)), From: Client, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "internal policy Local does not bind the NodePort", Setup: in(ready(C)), From: Client, To: NodePort, Want: to(C).masq(C)},
		{Name: "both policies Local from outside", Setup: setup{externalLocal, internalLocal, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "both policies Local, ClusterIP", Setup: setup{externalLocal, internalLocal, ready(A, C)}, From: X, To: ClusterIP, Want: to(A)},
	}
}

func hairpinRows() []Row {
	return []Row{
		{Name: "hairpin by ClusterIP", Setup: setup{ready(A)}, From: A, To: ClusterIP, Want: to(A).masq(A)},
		{Name: "hairpin or neighbour", Setup: setup{ready(A, B)}, From: A, To: ClusterIP, Want: to(A, B).masq(A)},
		{Name: "hairpin by load balancer IP", Setup: setup{ready(A)}, From: A, To: LoadBalance, Want: to(A).masq(A)},
		{Name: "hairpin by NodePort", Setup: setup{ready(A)}, From: A, To: NodePort, Want: to(A).masq(A)},
		{Name: "hairpin by load balancer IP, policy Local", Setup: setup{externalLocal, ready(A)}, From: A, To: LoadBalance, Want: to(A).masq(A)},
		{Name: "hairpin with affinity", Setup: setup{affinity(time.Hour), ready(A)}, From: A, To: ClusterIP, Want: to(A).masq(A).sticky()},
		{Name: "endpoint dials another one", Setup: setup{ready(A, C)}, From: B, To: ClusterIP, Want: to(A, C)},
		{Name: "hairpin over two nodes", Setup: setup{ready(C)}, From: C, To: NodePort, Want: to(C).masq(C)},
	}
}

func readinessRows() []Row {
	return []Row{
		{Name: "not ready is not used", Setup: setup{ready(A), notReady(C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "none ready", Setup: setup{notReady(A, C)}, From: X, To: ClusterIP, Want: rejected},
		{Name: "terminating is not used beside ready", Setup: setup{ready(A), terminating(C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "terminating is used if nothing is ready", Setup: setup{terminating(A, C)}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "terminating and not serving is never used", Setup: setup{dying(A, C)}, From: X, To: ClusterIP, Want: rejected},
		{Name: "terminating beside not ready", Setup: setup{terminating(A), notReady(C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "policy Local falls back to terminating here", Setup: setup{externalLocal, terminating(A), ready(C)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "policy Local falls back, inside takes the ready one", Setup: setup{externalLocal, terminating(A), ready(C)}, From: X, To: LoadBalance, Want: to(C)},
		{Name: "policy Local, only dying here", Setup: setup{externalLocal, dying(A), ready(C)}, From: Client, To: LoadBalance, Want: dropped},
		{Name: "policy Local, only not ready here", Setup: setup{externalLocal, notReady(A), ready(C)}, From: Client, To: LoadBalance, Want: dropped},
		{Name: "policy Local, terminating elsewhere only", Setup: setup{externalLocal, terminating(C)}, From: Client, To: LoadBalance, Want: dropped},
		{Name: "internal policy Local falls back to terminating here", Setup: setup{internalLocal, terminating(A), ready(C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "publishNotReadyAddresses: a terminating Pod counts as ready", Setup: setup{eps(endpoint{ready: true, serving: true, terminating: true}, []Place{A})}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "endpoints of a dead node are not used", Setup: setup{ready(A, C), deadNode("node-2")}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "endpoints of a dead node are better than none", Setup: setup{ready(C), deadNode("node-2")}, From: X, To: ClusterIP, Want: to(C)},
	}
}

func topologyRows() []Row {
	return []Row{
		{Name: "hints for this zone", Setup: setup{inZone("zone-a", A), inZone("zone-b", C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "hints for this zone, from outside", Setup: setup{inZone("zone-a", A), inZone("zone-b", C)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "hints for other zones only", Setup: setup{inZone("zone-b", A), inZone("zone-c", C)}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "a hint is missing", Setup: setup{inZone("zone-a", A), ready(C)}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "hints, node without zone", Setup: setup{inZone("zone-a", A), inZone("zone-b", C), node(func(n *model.Node) { n.Zone = "" })}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "hints for this node", Setup: setup{forNode("node-1", A), forNode("node-2", C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "hints for other nodes: the zone's count", Setup: setup{forNode("node-3", A), forNode("node-2", C)}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "hints of endpoints that are not ready do not count", Setup: setup{inZone("zone-a", A), notReady(B), inZone("zone-b", C)}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "the zone's endpoint terminates", Setup: setup{eps(endpoint{serving: true, terminating: true, zone: "zone-a"}, []Place{A}), inZone("zone-b", C)}, From: X, To: ClusterIP, Want: to(C)},
		{Name: "hints do not bind policy Local", Setup: setup{externalLocal, inZone("zone-b", A), inZone("zone-a", C)}, From: Client, To: LoadBalance, Want: to(A)},
	}
}

func affinityRows() []Row {
	aff := func(o ...Option) setup { return append(setup{affinity(time.Hour)}, o...) }
	return []Row{
		{Name: "affinity, ClusterIP", Setup: aff(ready(A, B, C)), From: X, To: ClusterIP, Want: to(A, B, C).sticky()},
		{Name: "affinity, load balancer IP", Setup: aff(ready(A, B, C)), From: Client, To: LoadBalance, Want: to(A, B, C).masq(C).sticky()},
		{Name: "affinity, NodePort", Setup: aff(ready(A, B, C)), From: Client, To: NodePort, Want: to(A, B, C).masq(C).sticky()},
		{Name: "affinity, external IP", Setup: aff(ready(A, B, C)), From: Client, To: External, Want: to(A, B, C).masq(C).sticky()},
		{Name: "affinity, policy Local", Setup: aff(externalLocal, ready(A, B, C)), From: Client, To: LoadBalance, Want: to(A, B).sticky()},
		{Name: "affinity, policy Local, NodePort", Setup: aff(externalLocal, ready(A, B, C)), From: Client, To: NodePort, Want: to(A, B).sticky()},
		{Name: "affinity from the node", Setup: aff(ready(A, B)), From: Node1, To: ClusterIP, Want: to(A, B).sticky()},
		{Name: "affinity, UDP", Setup: aff(ready(A, B, C)), From: X, To: ClusterIP, Protocol: model.UDP, Want: to(A, B, C).sticky()},
		{Name: "affinity of a day", Setup: setup{affinity(24 * time.Hour), ready(A, B)}, From: X, To: ClusterIP, Want: to(A, B).sticky()},
		{Name: "affinity is one for all frontends", Setup: aff(ready(A, B, C)), From: Client, To: ClusterIP, Also: []To{LoadBalance, External, NodePort, NodePort2}, Want: to(A, B, C).masq(C).sticky()},
		{Name: "affinity is one for all frontends, UDP", Setup: aff(ready(A, B, C)), From: Client, To: NodePort, Also: []To{LoadBalance, ClusterIP, External}, Protocol: model.UDP, Want: to(A, B, C).masq(C).sticky()},
		{Name: "affinity is one for all frontends, from a Pod here", Setup: aff(ready(A, B, C)), From: X, To: NodePort, Also: []To{ClusterIP, External, LoadBalance}, Want: to(A, B, C).sticky()},
		{Name: "affinity is one for all frontends, policy Local", Setup: aff(externalLocal, ready(A, B, C)), From: Client, To: LoadBalance, Also: []To{NodePort, ClusterIP, External}, Want: to(A, B).sticky()},
		{Name: "affinity is one for all frontends, internal policy Local", Setup: aff(internalLocal, ready(A, B, C)), From: X, To: ClusterIP, Also: []To{LoadBalance, NodePort}, Want: to(A, B).sticky()},
		{Name: "affinity without endpoints", Setup: aff(), From: X, To: ClusterIP, Want: rejected},
	}
}

func sourceRangeRows() []Row {
	mine := sourceRanges("192.0.2.100/32", "2001:db8:0:1::100/128")
	theNode := sourceRanges("192.0.2.11/32", "2001:db8:0:1::11/128")
	addresses := node(func(n *model.Node) {
		n.Addresses = []netip.Addr{NodePort.addr(model.IPv4), NodePort.addr(model.IPv6)}
	})
	return []Row{
		{Name: "source ranges admit", Setup: setup{mine, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "source ranges exclude", Setup: setup{mine, ready(A, C)}, From: Stranger, To: LoadBalance, Want: dropped},
		{Name: "source ranges exclude Pods", Setup: setup{mine, ready(A)}, From: X, To: LoadBalance, Want: dropped},
		{Name: "source ranges admit Pods", Setup: setup{sourceRanges("10.244.0.0/16", "fd00:10:244::/48"), ready(A)}, From: X, To: LoadBalance, Want: to(A)},
		{Name: "source ranges exclude the node", Setup: setup{mine, ready(A)}, From: Node1, To: LoadBalance, Want: dropped},
		{Name: "source ranges admit the node, which has the load balancer IP", Setup: setup{theNode, addresses, ready(A, C)}, From: Node1, To: LoadBalance, Bound: true, Want: to(A, C).masq(C)},
		{Name: "source ranges admit the node, which has the load balancer IP, UDP", Setup: setup{theNode, addresses, ready(A)}, From: Node1, To: LoadBalance, Bound: true, Protocol: model.UDP, Want: to(A)},
		{Name: "source ranges exclude the node, which has the load balancer IP", Setup: setup{mine, addresses, ready(A)}, From: Node1, To: LoadBalance, Bound: true, Want: dropped},
		{Name: "source ranges do not bind the ClusterIP", Setup: setup{mine, ready(A)}, From: Stranger, To: ClusterIP, Want: to(A)},
		{Name: "source ranges do not bind the NodePort", Setup: setup{mine, ready(A)}, From: Stranger, To: NodePort, Want: to(A)},
		{Name: "source ranges do not bind the external IP", Setup: setup{mine, ready(A)}, From: Stranger, To: External, Want: to(A)},
		{Name: "source range of everything", Setup: setup{sourceRanges("0.0.0.0/0", "::/0"), ready(A)}, From: Stranger, To: LoadBalance, Want: to(A)},
		{Name: "source ranges of the other family close this one", Setup: setup{sourceRanges("192.0.2.0/24"), ready(A)}, From: Client, To: LoadBalance, Want: dropped, Family: model.IPv6},
		{Name: "source range with blanks", Setup: setup{sourceRanges(" 192.0.2.0/25 "), ready(A)}, From: Client, To: LoadBalance, Want: to(A), Family: model.IPv4},
		{Name: "source ranges within each other", Setup: setup{sourceRanges("192.0.2.0/24", "192.0.2.64/26", "192.0.2.101/32"), ready(A)}, From: Client, To: LoadBalance, Want: to(A), Family: model.IPv4},
		{Name: "unreadable source range admits nobody", Setup: setup{sourceRanges("all of them"), ready(A)}, From: Client, To: LoadBalance, Want: dropped},
		{Name: "source ranges and policy Local", Setup: setup{mine, externalLocal, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "source ranges come before no endpoints", Setup: setup{mine}, From: Stranger, To: LoadBalance, Want: dropped},
	}
}

func nodePortRows() []Row {
	return []Row{
		{Name: "NodePort at a second address", Setup: setup{ready(A)}, From: Client, To: NodePort2, Want: to(A)},
		{Name: "NodePort at an allowed address", Setup: setup{ready(A), nodePortAddresses("192.0.2.11/32", "2001:db8:0:1::11/128")}, From: Client, To: NodePort, Want: to(A)},
		{Name: "NodePort at an address that is not allowed", Setup: setup{ready(A), nodePortAddresses("192.0.2.11/32", "2001:db8:0:1::11/128")}, From: Client, To: NodePort2, Want: untouched},
		{Name: "NodePort with ranges of the other family", Setup: setup{ready(A), nodePortAddresses("2001:db8::/32")}, From: Client, To: NodePort, Want: untouched, Family: model.IPv4},
		{Name: "NodePort at loopback is closed by default", Setup: setup{ready(A)}, From: Loopback, To: LocalPort, Want: untouched},
		{Name: "NodePort at loopback, endpoint here", Setup: setup{localhostPorts, ready(A)}, From: Loopback, To: LocalPort, Want: to(A).masq(A), Family: model.IPv4},
		{Name: "NodePort at loopback, endpoint there", Setup: setup{localhostPorts, ready(C)}, From: Loopback, To: LocalPort, Want: to(C).masq(C), Family: model.IPv4},
		{Name: "NodePort at loopback, IPv6 never", Setup: setup{localhostPorts, ready(A)}, From: Loopback, To: LocalPort, Want: untouched, Family: model.IPv6},
		{Name: "no such NodePort", Setup: setup{ready(A)}, From: Client, To: NodePort, Port: 30081, Want: untouched},
		{Name: "the Service's port at the node's address", Setup: setup{ready(A)}, From: Client, To: NodePort, Port: servicePort, Want: untouched},
		{Name: "no NodePort allocated", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 0 })}, From: Client, To: NodePort, Want: untouched},
		{Name: "no NodePort allocated, load balancer IP works", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 0 })}, From: Client, To: LoadBalance, Want: to(A)},
	}
}

func selectionRows() []Row {
	return []Row{
		{Name: "type ClusterIP has no load balancer IP", Setup: setup{ready(A), serviceType(corev1.ServiceTypeClusterIP)}, From: Client, To: LoadBalance, Want: untouched},
		{Name: "type ClusterIP has external IPs", Setup: setup{ready(A), serviceType(corev1.ServiceTypeClusterIP)}, From: Client, To: External, Want: to(A)},
		{Name: "type NodePort has no load balancer IP", Setup: setup{ready(A), serviceType(corev1.ServiceTypeNodePort)}, From: Client, To: LoadBalance, Want: untouched},
		{Name: "type NodePort", Setup: setup{ready(A), serviceType(corev1.ServiceTypeNodePort)}, From: Client, To: NodePort, Want: to(A)},
		{Name: "headless", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ClusterIPs = "None", []string{"None"} })}, From: Client, To: NodePort, Want: untouched},
		{Name: "ExternalName", Setup: setup{ready(A), serviceType(corev1.ServiceTypeExternalName)}, From: Client, To: NodePort, Want: untouched},
		{Name: "another proxy's Service", Setup: setup{ready(A), label(model.ServiceProxyNameLabel, "other")}, From: Client, To: NodePort, Want: untouched},
		{Name: "another proxy's Service, without its name", Setup: setup{ready(A), label(model.ServiceProxyNameLabel, "")}, From: Client, To: NodePort, Want: untouched},
		{Name: "this proxy's Service by name", Setup: setup{ready(A), label(model.ServiceProxyNameLabel, "mine"), node(func(n *model.Node) { n.ServiceProxyName = "mine" })}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "a bad port spoils only itself", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) {
			s.Ports = append(s.Ports, corev1.ServicePort{Name: "bad", Port: 99999, Protocol: "QUIC"})
		})}, From: X, To: ClusterIP, Want: to(A)},
		{Name: "a bad external IP spoils only itself", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) { s.ExternalIPs = append(s.ExternalIPs, "127.0.0.1", "nonsense") })}, From: X, To: External, Want: to(A)},
	}
}

func protocolRows() []Row {
	var rows []Row
	for _, p := range []model.Protocol{model.UDP, model.SCTP} {
		rows = append(rows,
			Row{Name: p.String() + ", ClusterIP from a Pod here", Setup: setup{ready(A, C)}, From: X, To: ClusterIP, Protocol: p, Want: to(A, C)},
			Row{Name: p.String() + ", load balancer IP from outside", Setup: setup{ready(A, C)}, From: Client, To: LoadBalance, Protocol: p, Want: to(A, C).masq(C)},
			Row{Name: p.String() + ", NodePort from outside", Setup: setup{ready(A, C)}, From: Client, To: NodePort, Protocol: p, Want: to(A, C).masq(C)},
			Row{Name: p.String() + ", policy Local", Setup: setup{externalLocal, ready(A, C)}, From: Client, To: LoadBalance, Protocol: p, Want: to(A)},
			Row{Name: p.String() + ", policy Local, none here", Setup: setup{externalLocal, ready(C)}, From: Client, To: LoadBalance, Protocol: p, Want: dropped},
			Row{Name: p.String() + ", hairpin", Setup: setup{ready(A)}, From: A, To: ClusterIP, Protocol: p, Want: to(A).masq(A)},
		)
	}
	return append(rows,
		Row{Name: "UDP, ClusterIP from the node", Setup: setup{ready(A, C)}, From: Node1, To: ClusterIP, Protocol: model.UDP, Want: to(A, C).masq(C)},
		Row{Name: "UDP, ClusterIP without endpoints", From: X, To: ClusterIP, Protocol: model.UDP, Want: rejected},
		Row{Name: "UDP, NodePort without endpoints", From: Client, To: NodePort, Protocol: model.UDP, Want: rejected},
		Row{Name: "UDP, no such port", Setup: setup{ready(A)}, From: X, To: ClusterIP, Protocol: model.UDP, Port: 81, Want: rejected},
		Row{Name: "UDP, source ranges exclude", Setup: setup{sourceRanges("198.51.100.0/24"), ready(A)}, From: Client, To: LoadBalance, Protocol: model.UDP, Want: dropped},
		Row{Name: "another protocol on the same port", Setup: setup{ready(A), spec(func(s *corev1.ServiceSpec) { s.Ports[0].Protocol = corev1.ProtocolUDP })}, From: X, To: ClusterIP, Want: rejected},
	)
}

func masqueradeRows() []Row {
	return []Row{
		{Name: "masquerade all, from a Pod here", Setup: setup{masqueradeAll, ready(A, C)}, From: X, To: ClusterIP, Want: to(A, C).masq(A, C)},
		{Name: "masquerade all, from outside", Setup: setup{masqueradeAll, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A, C).masq(A, C)},
		{Name: "masquerade all, NodePort", Setup: setup{masqueradeAll, ready(A)}, From: Client, To: NodePort, Want: to(A).masq(A)},
		{Name: "masquerade all, policy Local", Setup: setup{masqueradeAll, externalLocal, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "masquerade all, policy Local, NodePort", Setup: setup{masqueradeAll, externalLocal, ready(A, B)}, From: Client, To: NodePort, Want: to(A, B)},
		{Name: "masquerade all, policy Local, external IP", Setup: setup{masqueradeAll, externalLocal, ready(A)}, From: Client, To: External, Want: to(A)},
		{Name: "masquerade all, policy Local, ClusterIP", Setup: setup{masqueradeAll, externalLocal, ready(A)}, From: Client, To: ClusterIP, Want: to(A).masq(A)},
		{Name: "masquerade all, policy Local, hairpin", Setup: setup{masqueradeAll, externalLocal, ready(A)}, From: A, To: LoadBalance, Want: to(A).masq(A)},
		{Name: "masquerade all, policy Local, from a Pod here", Setup: setup{masqueradeAll, externalLocal, ready(C)}, From: X, To: LoadBalance, Want: to(C)},
		{Name: "masquerade all, policy Local, from the node", Setup: setup{masqueradeAll, externalLocal, ready(C)}, From: Node1, To: LoadBalance, Want: to(C).masq(C)},
		{Name: "masquerade all, policy Local, none here, but shared", Setup: setup{masqueradeAll, externalLocal, shared, ready(C)}, From: Client, To: LoadBalance, Want: to(C).masq(C)},
		{Name: "masquerade all, policy Local, UDP", Setup: setup{masqueradeAll, externalLocal, ready(A)}, From: Client, To: LoadBalance, Protocol: model.UDP, Want: to(A)},
		{Name: "masquerade all, policy Local, source ranges", Setup: setup{masqueradeAll, externalLocal, sourceRanges("192.0.2.100/32", "2001:db8:0:1::100/128"), ready(A)}, From: Client, To: LoadBalance, Want: to(A)},
		{Name: "masquerade all, internal policy Local", Setup: setup{masqueradeAll, internalLocal, ready(A)}, From: X, To: ClusterIP, Want: to(A).masq(A)},
		{Name: "Pods known by interface, from a Pod here", Setup: setup{byInterface, ready(A, C)}, From: X, To: ClusterIP, Want: to(A, C)},
		{Name: "Pods known by interface, hairpin", Setup: setup{byInterface, ready(A)}, From: A, To: ClusterIP, Want: to(A).masq(A)},
		{Name: "Pods known by interface, from outside", Setup: setup{byInterface, ready(A, C)}, From: Client, To: LoadBalance, Want: to(A, C).masq(C)},
		{Name: "Pods known by interface, policy Local, from a Pod here", Setup: setup{byInterface, externalLocal, ready(C)}, From: X, To: LoadBalance, Want: to(C)},
		{Name: "Pods not known, from a Pod here", Setup: setup{noDetection, ready(A, C)}, From: X, To: ClusterIP, Want: to(A, C).masq(C)},
		{Name: "Pods not known, policy Local, from a Pod here", Setup: setup{noDetection, externalLocal, ready(A, C)}, From: X, To: LoadBalance, Want: to(A)},
		{Name: "internal policy unset", Setup: setup{spec(func(s *corev1.ServiceSpec) {
			s.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyCluster)
		}), ready(A, C)}, From: X, To: ClusterIP, Want: to(A, C)},
	}
}
