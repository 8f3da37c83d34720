// SPDX-License-Identifier: Apache-2.0

package elect

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"path"
	"slices"
)

// Reason says why a node may not announce an address. The zero value means that
// it may. The text completes the sentence "node-1 does not announce it: ...".
type Reason string

// The reasons for which a node cannot announce, or must not, in the order in
// which Eligibility looks for them.
const (
	Eligible        Reason = ""
	NotAlive        Reason = "its agent does not answer the other agents"
	Leaving         Reason = "its agent is shutting down"
	Excluded        Reason = "it has the label node.kubernetes.io/exclude-from-external-load-balancers (ignored with the pool's ignoreExcludeLabel)"
	NotSelected     Reason = "the pool's nodeSelector does not match its labels"
	NoEndpoint      Reason = "it has no ready endpoint of the Service, whose external traffic policy is Local"
	NotProgrammed   Reason = "its kernel has not been programmed since its agent started"
	NoInterface     Reason = "it has no interface that the pool's interfaces match"
	NoSubnet        Reason = "it has no interface in the address's subnet and no default route; set the pool's interfaces"
	Reserved        Reason = "it is the network, broadcast or subnet-router anycast address of its interface's subnet, which hosts do not use as another's; give the Service another address"
	LinkDown        Reason = "the link of its interface is down"
	NotReceiving    Reason = "it receives nothing on its interface, where other nodes hear each other; check its cable, its switch port, and filters on the way"
	NotYetReporting Reason = "its agent has not published its interfaces yet"
)

// The reasons against a node that announces all the same where no better one
// can.
const (
	Cordoned  Reason = "it is cordoned (spec.unschedulable)"
	Deleting  Reason = "it is about to be deleted"
	OutOfSync Reason = "its kernel lags behind the Services"
	NoNetwork Reason = "it has the condition NetworkUnavailable"
)

// Grade is the set of reasons why an eligible node should leave an address to
// another. Less is better, so that the worst of two nodes' reasons decides; 0 is
// none. A node is never vetoed by its grade: a single node that is cordoned, and
// a cluster of nodes that are, go on announcing.
type Grade uint8

// The grades, each worse than all before it together. A cordoned node forwards
// as well as any other. One that is about to be deleted does, but soon will not.
// One that is out of sync misses the latest changes. Without its network it may
// reach no Pod but its own.
const (
	gradeCordoned Grade = 1 << iota
	gradeDeleting
	gradeOutOfSync
	gradeNoNetwork
	// gradeRouted is that of a node for one address, whose subnet it is not in. Where
	// there are nodes in it, their LAN is another one than its default route's.
	gradeRouted
)

// Reasons names what g is made of, the worst first.
func (g Grade) Reasons() []Reason {
	var out []Reason
	for _, of := range []struct {
		grade  Grade
		reason Reason
	}{{gradeNoNetwork, NoNetwork}, {gradeOutOfSync, OutOfSync}, {gradeDeleting, Deleting}, {gradeCordoned, Cordoned}} {
		if g&of.grade != 0 {
			out = append(out, of.reason)
		}
	}
	return out
}

// Graded returns the grade of n.
func Graded(n *Node) Grade {
	var g Grade
	if n.Cordoned {
		g |= gradeCordoned
	}
	if n.Deleting {
		g |= gradeDeleting
	}
	if !n.InSync {
		g |= gradeOutOfSync
	}
	if n.NoNetwork {
		g |= gradeNoNetwork
	}
	return g
}

// Interface is what a node publishes about one of its interfaces.
type Interface struct {
	Name string
	// Up means that the interface is administratively up and has a carrier.
	Up bool
	// Subnets are the on-link prefixes of its addresses. Second are those of them
	// that the kernel routes by another interface, which is in them too.
	Subnets, Second []netip.Prefix
	// Default4 and Default6: a default route of that family leaves
	// through it.
	Default4, Default6 bool
	Reception          Reception
}

// Reception is what a node receives on an interface.
type Reception uint8

const (
	// Untested: no answer was expected, or other frames came instead.
	Untested Reception = iota
	// Hearing: another node's agent has answered a question.
	Hearing
	// Silent: an agent that is alive has not answered, and no frame of any host has
	// come in since. This alone proves nothing: the agent may be the one that is cut
	// off, or the switch may be down.
	Silent
	// Deaf: Silent, while another node is Hearing on the link. A node does not
	// publish this; MarkDeaf finds it out.
	Deaf
)

// SameLink reports whether two nodes' interfaces seem to be on one link: they have a
// subnet in common or, if neither has any, their name.
func SameLink(a, b *Interface) bool {
	if len(a.Subnets)+len(b.Subnets) == 0 {
		return a.Name == b.Name
	}
	return slices.ContainsFunc(a.Subnets, func(p netip.Prefix) bool { return slices.Contains(b.Subnets, p) })
}

// MarkDeaf makes those interfaces Deaf that are Silent although another node that is
// alive is Hearing on the same link. It changes the nodes' interfaces.
func MarkDeaf(nodes []Node) {
	for i := range nodes {
		for k := range nodes[i].Interfaces {
			silent := &nodes[i].Interfaces[k]
			if silent.Reception == Silent && slices.ContainsFunc(nodes, func(n Node) bool {
				return n.Alive && n.Name != nodes[i].Name && slices.ContainsFunc(n.Interfaces, func(hearing Interface) bool {
					return hearing.Up && hearing.Reception == Hearing && SameLink(silent, &hearing)
				})
			}) {
				silent.Reception = Deaf
			}
		}
	}
}

// Node is what is known about a node.
type Node struct {
	Name   string
	Labels map[string]string

	// Alive comes from membership: its agent answers.
	Alive bool
	// Leaving: its agent hands over and is about to stop.
	Leaving bool
	// Excluded: the label that keeps it out of external load balancers.
	Excluded bool
	// Cordoned: spec.unschedulable.
	Cordoned bool
	// Deleting: it has a deletion timestamp, or the cluster autoscaler's taint
	// ToBeDeletedByClusterAutoscaler.
	Deleting bool
	// NoNetwork: its condition NetworkUnavailable is true.
	NoNetwork bool
	// Starting: its kernel has not matched Desired since its agent started. InSync:
	// it does now.
	Starting, InSync bool
	// Interfaces it could announce on; nil until it has published them.
	Interfaces []Interface
}

// Pool is what the addresses of one pool have in common.
type Pool struct {
	// Selects reports whether a node with these labels may announce; nil: all may.
	Selects func(labels map[string]string) bool
	// IgnoreExcludeLabel lets nodes announce that are Excluded.
	IgnoreExcludeLabel bool
	// Interfaces are names or shell patterns of interfaces. Empty: the interface
	// whose subnet holds the address, else that of the default route.
	Interfaces []string
}

// Address is one address to place.
type Address struct {
	Addr netip.Addr
	// Pool may be shared among addresses and must not be nil.
	Pool *Pool
	// Local, unless nil, limits the choice to nodes with a ready endpoint
	// (external traffic policy Local).
	Local map[string]bool
}

// Eligibility returns why n may not announce a, or Eligible. Graded returns how
// willingly it is taken then.
func Eligibility(n *Node, a *Address) Reason {
	if r := nodeEligibility(n, a.Pool); r != Eligible {
		return r
	}
	r, _ := placeEligibility(n, a, a.edge())
	return r
}

// nodeEligibility is the part of Eligibility that is the same for all addresses of a pool.
func nodeEligibility(n *Node, p *Pool) Reason {
	switch {
	case !n.Alive:
		return NotAlive
	case n.Leaving:
		return Leaving
	case n.Excluded && !p.IgnoreExcludeLabel:
		return Excluded
	case p.Selects != nil && !p.Selects(n.Labels):
		return NotSelected
	case n.Interfaces == nil:
		return NotYetReporting
	}
	return Eligible
}

// placeEligibility is the rest of Eligibility, for one address and its edge. routed
// reports, of an eligible node, that only its default route leads to a: none of its interfaces is in
// a's subnet, nor named by the pool.
func placeEligibility(n *Node, a *Address, edge int) (r Reason, routed bool) {
	if a.Local != nil && !a.Local[n.Name] {
		return NoEndpoint, false
	}
	if n.Starting {
		return NotProgrammed, false
	}
	var room [4]int
	on, longest := a.on(n.Interfaces, room[:0])
	switch {
	case len(on) == 0 && len(a.Pool.Interfaces) > 0:
		return NoInterface, false
	case len(on) == 0:
		return NoSubnet, false
	case longest >= 0 && a.reserved(n.Interfaces, on, edge):
		return Reserved, false
	}
	r = LinkDown
	for _, i := range on {
		switch k := &n.Interfaces[i]; {
		case k.Up && k.Reception != Deaf:
			return Eligible, longest < 0 && len(a.Pool.Interfaces) == 0
		case k.Up:
			r = NotReceiving
		}
	}
	return r, false
}

// edge is how many of a's last bits are all 0 or, of IPv4, all 1.
func (a *Address) edge() int {
	b := a.Addr.As16()
	low, high := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[:8])
	switch {
	case a.Addr.Is4(): // whose last 32 bits are not followed by 0
		v4 := uint32(low)
		return max(bits.TrailingZeros32(v4), bits.TrailingZeros32(^v4))
	case low == 0:
		return 64 + bits.TrailingZeros64(high)
	}
	return bits.TrailingZeros64(low)
}

// reserved reports whether a is no host's in the subnet in which it is to be announced:
// its first address (of IPv6 the subnet-router anycast address, RFC 4291 section
// 2.6.1) or, for IPv4, its last. Subnets of two addresses have neither (RFC 3021,
// RFC 6164).
func (a *Address) reserved(interfaces []Interface, on []int, edge int) bool {
	for _, i := range on {
		for _, p := range interfaces[i].Subnets {
			// The last bits alone decide for most addresses.
			if host := a.Addr.BitLen() - p.Bits(); host >= 2 && host <= edge && p.Contains(a.Addr) {
				return true
			}
		}
	}
	return false
}

// On returns the indexes of the interfaces on which a is to be announced,
// whether up or not: of those that the pool names, or of all, the ones in the
// smallest subnet that holds a. If there is none: all that the pool names, or those
// of the default route. Of several that are in one subnet only one is left, by
// which the kernel routes to that: else two would answer each question.
func On(a *Address, interfaces []Interface) []int {
	out, _ := a.on(interfaces, nil)
	return out
}

// on appends to out, which is empty, what On returns. longest is the length of the
// smallest subnet that holds a, or -1.
func (a *Address) on(interfaces []Interface, out []int) (_ []int, longest int) {
	longest = -1
	all := len(a.Pool.Interfaces) == 0
	for i := range interfaces {
		l := &interfaces[i]
		if !all && !a.Pool.named(l.Name) {
			continue
		}
		switch length := l.bits(a.Addr); {
		case length > longest:
			out, longest = append(out[:0], i), length
		case length == longest && (length >= 0 || !all || l.leads(a.Addr)):
			out = append(out, i)
		}
	}
	if len(out) < 2 {
		return out, longest
	}
	return slices.DeleteFunc(slices.Clone(out), func(i int) bool {
		return slices.ContainsFunc(out, func(j int) bool { return i != j && after(a, interfaces, i, j) })
	}), longest
}

// after reports whether i and j are on one link, and j is the one for a.
func after(a *Address, interfaces []Interface, i, j int) bool {
	x, y := &interfaces[i], &interfaces[j]
	shared, holds := false, false
	var second, otherSecond bool
	for _, p := range x.Subnets {
		if p.Addr().Is4() != a.Addr.Is4() || !slices.Contains(y.Subnets, p) {
			continue
		}
		// The subnet that holds a decides, else the first.
		if !shared || !holds && p.Contains(a.Addr) {
			shared, holds = true, p.Contains(a.Addr)
			second, otherSecond = slices.Contains(x.Second, p), slices.Contains(y.Second, p)
		}
	}
	return shared && (second && !otherSecond || second == otherSecond && j < i)
}

// named reports whether one of the pool's patterns matches.
func (p *Pool) named(name string) bool {
	return slices.ContainsFunc(p.Interfaces, func(pattern string) bool {
		ok, err := path.Match(pattern, name)
		return err == nil && ok
	})
}

// bits is the length of the longest subnet of i that holds a, or -1.
func (i *Interface) bits(a netip.Addr) int {
	longest := -1
	for _, p := range i.Subnets {
		if p.Contains(a) {
			longest = max(longest, p.Bits())
		}
	}
	return longest
}

// leads reports whether a default route of a's family leaves through i.
func (i *Interface) leads(a netip.Addr) bool {
	if a.Is4() {
		return i.Default4
	}
	return i.Default6
}
