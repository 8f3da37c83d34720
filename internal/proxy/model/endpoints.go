// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

// WeightAnnotation on an EndpointSlice gives each of its endpoints that share of
// new connections relative to others of the Service, from 1 to MaxWeight; 1 is
// the share of those without.
const WeightAnnotation = "causeway.dev/weight"

// MaxWeight bounds weights: tables grow with their sum.
const MaxWeight = 100

// weight is the slice's, 1 and a problem if that is none.
func (c *computation) weight(sl *sliceT) uint16 {
	raw, ok := sl.Annotations[WeightAnnotation]
	if !ok {
		return 1
	}
	n, err := strconv.ParseUint(raw, 10, 16)
	if err != nil || n < 1 || n > MaxWeight {
		c.problem("InvalidWeight", "EndpointSlice %s has annotation %s=%q, which counts as 1: use a whole number from 1 to %d; "+
			"endpoints that are to get no connections must not be ready", sl.Name, WeightAnnotation, raw, MaxWeight)
		return 1
	}
	return uint16(n)
}

// candidate is one endpoint of one Service port with all that the choice
// among endpoints depends on.
type candidate struct {
	Endpoint
	ready, serving, terminating bool
	// dead: it is on a node that does not run.
	dead  bool
	hints *discoveryv1.EndpointHints
}

// fallback is a terminating endpoint that still serves: the fall-back when
// nothing is ready (KEP-1669).
func (c *candidate) fallback() bool { return c.serving && c.terminating }

// candidates collects the endpoints of one port from the slices of one
// family. Slices that do not carry the port are ignored, as are endpoints
// whose address does not parse.
func (c *computation) candidates(fam Family, port *corev1.ServicePort, proto Protocol) []candidate {
	sls := c.in.Slices
	n := 0
	for _, sl := range sls {
		if sliceFamily(sl) == fam {
			n += len(sl.Endpoints)
		}
	}
	cs := make([]candidate, 0, n)
	for _, sl := range sls {
		if sliceFamily(sl) != fam {
			continue
		}
		for i := range sl.Ports {
			number, ok := slicePort(&sl.Ports[i], port.Name, proto)
			if !ok {
				continue
			}
			weight := c.weight(sl)
			for j := range sl.Endpoints {
				if cand, ok := newCandidate(&sl.Endpoints[j], fam, number, weight, c.node); ok {
					cs = append(cs, cand)
				}
			}
		}
	}
	return dedupe(cs)
}

func sliceFamily(sl *discoveryv1.EndpointSlice) Family {
	switch sl.AddressType {
	case discoveryv1.AddressTypeIPv4:
		return IPv4
	case discoveryv1.AddressTypeIPv6:
		return IPv6
	}
	return 0
}

// slicePort gives the number of a slice's port if it is the named one. A port
// without a name is the port named "", one without a number is unusable.
func slicePort(p *discoveryv1.EndpointPort, name string, proto Protocol) (uint16, bool) {
	if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
		return 0, false
	}
	got := ""
	if p.Name != nil {
		got = *p.Name
	}
	gotProto := corev1.ProtocolTCP
	if p.Protocol != nil {
		gotProto = *p.Protocol
	}
	return uint16(*p.Port), got == name && string(gotProto) == proto.String()
}

func newCandidate(ep *discoveryv1.Endpoint, fam Family, port, weight uint16, node *nodeFacts) (candidate, bool) {
	if len(ep.Addresses) == 0 {
		return candidate{}, false
	}
	addr, ok := netaddr.Parse(ep.Addresses[0])
	if !ok || FamilyOf(addr) != fam || addr.IsUnspecified() {
		return candidate{}, false
	}
	c := candidate{
		Endpoint:    Endpoint{AddrPort: netip.AddrPortFrom(addr, port), Weight: weight},
		ready:       isTrue(ep.Conditions.Ready, true),
		serving:     isTrue(ep.Conditions.Serving, true),
		terminating: isTrue(ep.Conditions.Terminating, false),
		hints:       ep.Hints,
	}
	if ep.NodeName != nil {
		c.Local = node.Name != "" && *ep.NodeName == node.Name
		if node.dead[*ep.NodeName] {
			c.ready, c.terminating, c.dead = false, true, true
		}
	}
	return c, true
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

// dedupe sorts by address and port and keeps one candidate each. Two can meet
// while an endpoint moves between slices, or when a Pod inherits the address
// of one that still terminates: the one that lives longer wins.
func dedupe(cs []candidate) []candidate {
	rank := func(c *candidate) int {
		r := 0
		if !c.terminating {
			r += 4
		}
		if c.ready {
			r += 2
		}
		if c.serving {
			r++
		}
		return r
	}
	slices.SortStableFunc(cs, func(a, b candidate) int {
		return cmp.Or(a.AddrPort.Compare(b.AddrPort), cmp.Compare(rank(&b), rank(&a)))
	})
	return slices.CompactFunc(cs, func(a, b candidate) bool { return a.AddrPort == b.AddrPort })
}

// choice is what one Service port can use.
type choice struct {
	// cluster and local are the endpoints under the two traffic policies.
	cluster, local []Endpoint
	// any says that somebody somewhere in the cluster serves the port.
	any bool
}

// choose applies readiness, the fall-back to terminating endpoints, topology
// and locality. The fall-back is taken for cluster and local independently.
func choose(cs []candidate, node *nodeFacts) choice {
	var ch choice
	topo := topology(cs, node)
	ch.cluster = pick(cs, func(c *candidate) bool { return c.ready && topo(c) })
	if len(ch.cluster) == 0 {
		ch.cluster = pick(cs, (*candidate).fallback)
	}
	ch.any = len(ch.cluster) > 0
	ch.local = pick(cs, func(c *candidate) bool { return c.Local && c.ready })
	if len(ch.local) == 0 {
		ch.local = pick(cs, func(c *candidate) bool { return c.Local && c.fallback() })
	}
	return ch
}

// servingOf gives what Frontend.Serving wants.
func servingOf(cs []candidate, proto Protocol) []netip.AddrPort {
	pick := func(dead bool) (aps []netip.AddrPort) {
		for i := range cs {
			if c := &cs[i]; c.dead == dead && (c.ready || c.serving || proto == TCP) {
				aps = append(aps, c.AddrPort)
			}
		}
		return aps
	}
	if aps := pick(false); len(aps) > 0 {
		return aps
	}
	return pick(true)
}

func pick(cs []candidate, ok func(*candidate) bool) []Endpoint {
	n := 0
	for i := range cs {
		if ok(&cs[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	eps := make([]Endpoint, 0, n)
	for i := range cs {
		if ok(&cs[i]) {
			eps = append(eps, cs[i].Endpoint)
		}
	}
	return eps
}

// topology gives the filter that the ready endpoints' hints ask for. Hints
// for nodes count before hints for zones; either only if every ready endpoint
// carries them and one of them names this node or its zone, so that a
// half-updated set of slices never starves a node (KEP-2433, KEP-3015).
func topology(cs []candidate, node *nodeFacts) func(*candidate) bool {
	forNode := func(c *candidate) bool {
		return c.hints != nil && slices.ContainsFunc(c.hints.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == node.Name })
	}
	forZone := func(c *candidate) bool {
		return c.hints != nil && slices.ContainsFunc(c.hints.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == node.Zone })
	}
	ready, allNodes, allZones, thisNode, thisZone := false, true, true, false, false
	for i := range cs {
		c := &cs[i]
		if !c.ready {
			continue
		}
		ready = true
		allNodes = allNodes && c.hints != nil && len(c.hints.ForNodes) > 0
		allZones = allZones && c.hints != nil && len(c.hints.ForZones) > 0
		thisNode = thisNode || forNode(c)
		thisZone = thisZone || forZone(c)
	}
	switch {
	case ready && allNodes && thisNode:
		return forNode
	case ready && allZones && thisZone:
		return forZone
	}
	return func(*candidate) bool { return true }
}
