// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

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

// setNode takes in where c runs.
func (c *candidate) setNode(name string, node *nodeFacts) {
	c.Local = node.Name != "" && name == node.Name
	if node.dead[name] {
		c.ready, c.terminating, c.dead = false, true, true
	}
}

// candidates collects the endpoints of one port from the slices' ports that
// carry it. They are valid until the next call.
func (c *computation) candidates(from []source) []candidate {
	n := 0
	for _, src := range from {
		n += len(src.slice.endpoints)
	}
	cs := slices.Grow(c.buffer[:0], n)
	for _, src := range from {
		for i := range src.slice.endpoints {
			cand := src.slice.endpoints[i]
			cand.AddrPort = netip.AddrPortFrom(cand.AddrPort.Addr(), src.number)
			cs = append(cs, cand)
		}
	}
	c.buffer = cs
	return dedupe(cs)
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
	pick := func(dead bool) []netip.AddrPort {
		is := func(c *candidate) bool { return c.dead == dead && (c.ready || c.serving || proto == TCP) }
		n := 0
		for i := range cs {
			if is(&cs[i]) {
				n++
			}
		}
		if n == 0 {
			return nil
		}
		aps := make([]netip.AddrPort, 0, n)
		for i := range cs {
			if is(&cs[i]) {
				aps = append(aps, cs[i].AddrPort)
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
