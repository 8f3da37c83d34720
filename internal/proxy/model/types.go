// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Family is an IP family.
type Family uint8

// The families, in the order in which they are handled.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are all families.
var Families = [...]Family{IPv4, IPv6}

// String is "IPv4" or "IPv6".
func (f Family) String() string { return fmt.Sprintf("IPv%d", uint8(f)) }

// FamilyOf gives the family of a; IPv4-mapped addresses are IPv6 here, as
// they must have been unmapped at the API's edge.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Unspecified is 0.0.0.0 or ::, which stands for a NodePort's address.
func (f Family) Unspecified() netip.Addr {
	if f == IPv4 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols of a Service port.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the API's name: "TCP", "UDP", "SCTP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Node is what the rules of this node depend on besides Services.
type Node struct {
	// Name is the Kubernetes name of the node.
	Name string
	// Zone is the node's topology.kubernetes.io/zone label, "" if it has none.
	Zone string
	// PodCIDRs are the ranges of the Pods that run on this node, and of no
	// others: replies to them come back through this node.
	PodCIDRs []netip.Prefix
	// PodInterfaces finds this node's Pods by the interface that their packets
	// come in on instead: names, or prefixes that end in '*'. If set, PodCIDRs
	// are not used.
	PodInterfaces []string
	// NodePortAddresses are the local addresses that NodePorts answer on. Empty
	// means all but loopback.
	NodePortAddresses []netip.Prefix
	// LocalhostNodePorts lets NodePorts answer on 127.0.0.1, which needs
	// net.ipv4.conf.all.route_localnet.
	LocalhostNodePorts bool
	// ExternalIPRanges are the ranges that spec.externalIPs may use. Empty means
	// none: anybody who can create a Service could take any address otherwise
	// (CVE-2020-8554).
	ExternalIPRanges []netip.Prefix
	// Addresses are the node's own, by which source ranges admit it.
	Addresses []netip.Addr
	// MasqueradeAll masquerades every translated connection, but for those to
	// frontends that keep the client's address.
	MasqueradeAll bool
	// ServiceProxyName selects the Services with this value of the label
	// service.kubernetes.io/service-proxy-name; "" those without the label.
	ServiceProxyName string
	// DeadNodes lists nodes that are known not to run, before their endpoints
	// are marked so. Their endpoints are used only if there are no others.
	DeadNodes []string
}

// Input is one Service with its slices, as the API has them. Neither is
// modified or kept.
type Input struct {
	Service *corev1.Service
	Slices  []*discoveryv1.EndpointSlice
	// Former are, by the slice's name, the ports that the Service had when it was
	// written, where it has others now. Who does not know them leaves them out.
	Former map[string][]corev1.ServicePort
}

// Entries is the number of endpoints times ports, which is what to compute and
// to program the Service costs.
func (in Input) Entries() int {
	endpoints := 0
	for _, sl := range in.Slices {
		endpoints += len(sl.Endpoints)
	}
	return len(in.Service.Spec.Ports) * max(endpoints, 1)
}

// Kind says what a frontend is. Lower kinds win a conflict over a frontend.
type Kind uint8

// The kinds of frontends.
const (
	ClusterIP Kind = iota
	LoadBalancerIP
	ExternalIP
	NodePort
)

// String is the term that users know.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "LoadBalancer IP", "external IP", "NodePort"}[k]
}

// Key is what a client dials. Addr is Family.Unspecified for a NodePort.
type Key struct {
	Addr     netip.Addr
	Port     uint16
	Protocol Protocol
}

// Family is the key's IP family.
func (k Key) Family() Family { return FamilyOf(k.Addr) }

// String is "192.0.2.1:80/TCP".
func (k Key) String() string {
	return netip.AddrPortFrom(k.Addr, k.Port).String() + "/" + k.Protocol.String()
}

// Compare orders keys by address, port and protocol.
func (k Key) Compare(o Key) int {
	return cmp.Or(k.Addr.Compare(o.Addr), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol))
}

// Action is what happens with a new connection.
type Action uint8

// The actions.
const (
	// Forward sends it to one of the endpoints.
	Forward Action = iota
	// Reject refuses it at once: nobody anywhere serves this Service.
	Reject
	// Drop stays silent: others may serve it, this node may not.
	Drop
)

// String is "Forward", "Reject" or "Drop".
func (a Action) String() string { return [...]string{"Forward", "Reject", "Drop"}[a] }

// Endpoint is where a connection can end up.
type Endpoint struct {
	AddrPort netip.AddrPort
	// Local says that it runs on this node.
	Local bool
	// Weight is its share of new connections relative to the others, from 1 to
	// MaxWeight: that of its slice's WeightAnnotation.
	Weight uint16
}

// Target is what happens with new connections to a frontend, from one side.
type Target struct {
	Action Action
	// Endpoints are sorted by address and port, without duplicates; empty
	// unless Action is Forward.
	Endpoints []Endpoint
	// Affinity keeps a client with its endpoint until it has not connected for
	// that long; 0 is none. Whole seconds, at most a day.
	Affinity time.Duration
}

// Equal compares deeply; nil equals nil only.
func (t *Target) Equal(o *Target) bool {
	if t == nil || o == nil || t == o {
		return t == o
	}
	return t.Action == o.Action && t.Affinity == o.Affinity && slices.Equal(t.Endpoints, o.Endpoints)
}

// Frontend is one address and port that this node answers for.
type Frontend struct {
	Key
	Kind Kind
	// PortName is the name of the Service's port, often "".
	PortName string
	// Group is the ClusterIP's frontend of the same port and family, by which
	// all frontends of a port know that affinity is one for them: a client that
	// dials two of them gets one endpoint. The zero Key stands for the frontend's own.
	Group Key
	// Inside is for clients on this node, Outside for all others; the same
	// pointer where they do not differ.
	Inside, Outside *Target
	// SourceRanges are the only clients that may connect, if Restricted.
	SourceRanges []netip.Prefix
	Restricted   bool
	// KeepsClient says that the frontend is one of externalTrafficPolicy Local,
	// which is for endpoints to see the client's address: Node.MasqueradeAll does
	// not concern it.
	KeepsClient bool
	// Serving are the endpoints that an established flow may stay with, wherever
	// they are and whether or not new flows go there: all that serve, and for TCP
	// all that there are, as one that ends may still finish its connections. Those
	// on dead nodes are among them only if there are no others. Sorted.
	Serving []netip.AddrPort
}

// AffinityGroup is Group, or f's own Key where that is not set.
func (f *Frontend) AffinityGroup() Key {
	if f.Group.Addr.IsValid() {
		return f.Group
	}
	return f.Key
}

// Equal compares deeply.
func (f *Frontend) Equal(o *Frontend) bool {
	return f.Key == o.Key && f.Kind == o.Kind && f.Group == o.Group && f.PortName == o.PortName && f.Restricted == o.Restricted && f.KeepsClient == o.KeepsClient &&
		slices.Equal(f.SourceRanges, o.SourceRanges) && slices.Equal(f.Serving, o.Serving) &&
		f.Inside.Equal(o.Inside) && f.Outside.Equal(o.Outside)
}

// Service is all that this node does for one Service.
type Service struct {
	Name types.NamespacedName
	// Frontends are sorted by key, without duplicates.
	Frontends []Frontend
	// HealthCheckPort is the healthCheckNodePort to serve, 0 for none, and
	// LocalReady the number of ready endpoints here to report on it.
	HealthCheckPort uint16
	LocalReady      int
	// Scheduler is the IPVS scheduler that the Service asks for, "" for any.
	Scheduler string
}

// Equal compares deeply; nil equals nil only.
func (s *Service) Equal(o *Service) bool {
	if s == nil || o == nil || s == o {
		return s == o
	}
	return s.Name == o.Name && s.Scheduler == o.Scheduler && s.HealthCheckPort == o.HealthCheckPort && s.LocalReady == o.LocalReady &&
		slices.EqualFunc(s.Frontends, o.Frontends, func(a, b Frontend) bool { return a.Equal(&b) })
}

// Desired is everything that this node must do.
type Desired struct {
	Node     Node
	Services map[types.NamespacedName]*Service
}

// Problem is a part of a Service that cannot be programmed. It becomes an
// event on the Service.
type Problem struct {
	Service types.NamespacedName
	// Reason is a CamelCase word for the kind of problem.
	Reason string
	// Message says what is wrong and what to do.
	Message string
}
