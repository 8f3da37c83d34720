// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Mode is how the State of one proxy mode differs from that of others.
type Mode struct {
	// Name is the backend's, for example "nftables".
	Name string
	// Families are those that the mode programs; none means that it does nothing.
	Families []model.Family
	// Shares gives the endpoints' shares of new connections where the mode cannot
	// divide them exactly by weight; nil if it can.
	Shares func([]model.Endpoint) []float64
	// Proxies says that a process carries TCP and UDP between two connections:
	// endpoints see the node's address, and there are Listeners.
	Proxies bool
	// Local says that packets to all Services' addresses are delivered locally:
	// ports without a Service are refused there from inside too, and what comes
	// from such an address is masqueraded.
	Local bool
	// Loopback gives the endpoints of connections to a NodePort at 127.0.0.1 with
	// their shares, where these take a way of their own; nil if they do not.
	Loopback func(inside *model.Target) []Endpoint
}

// State is what a node's kernel does for Services. Rules are texts for people: the
// element, rule, virtual server or listener behind a fact.
type State struct {
	Mode
	Frontends map[model.Key]*Frontend
	// Closed are the addresses whose ports without a Service are refused.
	Closed map[netip.Addr]Closed
	// LocalEndpoints are endpoints on this node, to which connections need not be
	// masqueraded, and Hairpin those to which their own are; by rule.
	LocalEndpoints, Hairpin map[netip.Addr]string
	// LocalPods are the addresses of this node's Pods, where they are not known by
	// interface, NodePorts the local addresses at which NodePorts answer.
	LocalPods, NodePorts []Range
	// Listeners are the proxy's, by rule.
	Listeners map[Listener]string
	// Own are addresses of the node's interfaces that it serves in no way but its
	// own, although they may be a Service's.
	Own map[netip.Addr]bool
	// Rejected are Services whose changes the kernel rejects, with what it says. It
	// keeps what it had of them.
	Rejected map[types.NamespacedName]string
	// Faults are differences that concern no Service: in the mode's constant rules,
	// routes and tables.
	Faults []Difference
}

// Frontend is one address and port that the kernel answers for. A NodePort has the
// unspecified address.
type Frontend struct {
	// Inside and Outside are the views of package model; the same pointer where the
	// kernel has one for both, nil where it has none.
	Inside, Outside *View
	// Loopback is for connections to 127.0.0.1, nil if they are like those Inside.
	Loopback *View
	// KeepsClient: not masqueraded with all others.
	KeepsClient bool
}

// View is what happens with new connections to a frontend from one side.
type View struct {
	Action model.Action
	// Endpoints are sorted by address and port.
	Endpoints []Endpoint
	// Affinity is how long a client keeps its endpoint. Hashed: as long as the
	// endpoints stay the same, whatever Affinity is.
	Affinity time.Duration
	Hashed   bool
	// SourceRanges are the only clients that may connect, if Restricted.
	SourceRanges []Range
	Restricted   bool
	Rule         string
	// Gaps are elements that endpoints lack.
	Gaps []string
}

// Endpoint is where a connection can end up.
type Endpoint struct {
	netip.AddrPort
	// Share of new connections, from 0 to 1.
	Share float64
	Rule  string
}

// Range is a range of addresses.
type Range struct {
	model.AddrRange
	Rule string
}

// Closed is an address whose ports without a Service are refused from outside, and
// from Inside too if that is set.
type Closed struct {
	Inside bool
	Rule   string
}

// Listener is where the proxy accepts what is dialled from one side.
type Listener struct {
	Family   model.Family
	Protocol model.Protocol
	Outside  bool
}

// Difference is one fact that is otherwise than it should be.
type Difference struct {
	// Service and Port (its name or number) are whose it is; empty if nobody's.
	Service types.NamespacedName
	Port    string
	Kind    DifferenceKind
	// What is missing, extra, or other, and in the last case how.
	What string
	// Rule is the element or rule behind it, or where it should be, if known.
	Rule string
}

// DifferenceKind says how two States differ.
type DifferenceKind uint8

// The kinds of differences.
const (
	Missing DifferenceKind = iota
	Extra
	Other
)

// String is "missing", "extra" or "other".
func (k DifferenceKind) String() string { return [...]string{"missing", "extra", "other"}[k] }

// NewState returns a State of a mode without facts.
func NewState(m Mode) State {
	return State{
		Mode: m, Frontends: map[model.Key]*Frontend{}, Closed: map[netip.Addr]Closed{},
		LocalEndpoints: map[netip.Addr]string{}, Hairpin: map[netip.Addr]string{},
		Listeners: map[Listener]string{}, Rejected: map[types.NamespacedName]string{},
	}
}
