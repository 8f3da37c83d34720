// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
)

// classChain returns the chain that picks an endpoint for the frontends of one
// class.
//
// A packet can overtake a commit: it has read its class, and then there are
// fewer endpoints than that class has slots. The slot that it picks is gone
// then, and the rule does not match. For such a packet the last but one rule
// tries the first slot, which is there as long as there is any. The last one
// drops: the client's retransmission finds the new state.
func (p *program) classChain(u use, c class) nft.Chain {
	rules := []nft.Rule{p.balance(u, c.slots()).Rule("")}
	again := p.balance(u, 1)
	if c.affinity() > 0 {
		rules = p.affinityRules(u, c)
		again = p.pick(u, c, 1, false)
	}
	rules = append(rules, again.Rule("overtook a commit"), p.exprs().Drop().Rule(""))
	return p.chain(u.chain(c), nil, rules)
}

// balance is the whole of load balancing:
//
//	dnat to <frontend> . numgen random mod n map @endpoints
func (p *program) balance(u use, slots int) *expr.List {
	return key(p.exprs(), u, r0).Random(r0+p.keyWords(u), slots).Map(r0, r0, u.of(setEndpoints)).DNAT(r0)
}

// affinityRules: the first sends a client where it was sent before, by this or
// another frontend of the Service port, if that endpoint is still there, and the
// timeout begins again. The second picks an endpoint and remembers its number. The
// third does without when the map of clients is full.
func (p *program) affinityRules(u use, c class) []nft.Rule {
	r := p.affinityRegisters(u)
	known := p.client(u, r).Map(r.client, r.free+1, setAffinity)
	throughMark(known, r.free+1, r.free, r.number).
		Map(r.frontend, r.endpoint, u.of(setAffinityEndpoints)).
		Update(r.client, r.number, setAffinity, c.affinity()).DNAT(r.endpoint)
	return []nft.Rule{known.Rule(""), p.pick(u, c, c.slots(), true).Rule(""), p.pick(u, c, c.slots(), false).Rule("")}
}

// affinityRegisters is where the affinity rules keep what: client and group
// follow each other, as do frontend and number, because they are keys together.
// From free on is scratch for two; behind it a frontend with an IPv6 address leaves two
// more, so that the endpoint takes its place.
type affinityRegisters struct {
	client, group, frontend, number, free, endpoint uint32
}

func (p *program) affinityRegisters(u use) affinityRegisters {
	r := affinityRegisters{client: r0, group: r0 + p.addrWords()}
	r.frontend = r.group + 1
	r.number = r.frontend + p.keyWords(u)
	r.free = r.number + 1
	r.endpoint = r.frontend
	if u.nodePort {
		r.endpoint = r.free // which is longer than a NodePort
	}
	return r
}

// client loads client . group, and the frontend beside them.
func (p *program) client(u use, r affinityRegisters) *expr.List {
	x := key(p.exprs().Saddr(r.client), u, r.frontend).Map(r.frontend, r.free+1, u.groups())
	return throughMark(x, r.free+1, r.free, r.group)
}

// pick translates to the endpoint of a random slot, and remembers it or not.
func (p *program) pick(u use, c class, slots int, remember bool) *expr.List {
	r := p.affinityRegisters(u)
	x := key(p.exprs(), u, r.frontend)
	if remember {
		x = p.client(u, r)
	}
	x.Random(r.number, slots).Map(r.frontend, r.free+1, u.of(setAffinitySlots))
	throughMark(x, r.free+1, r.free, r.number)
	if remember {
		// An update never changes the value of an element that exists.
		x.Delete(r.client, r.number, setAffinity).Update(r.client, r.number, setAffinity, c.affinity())
	}
	return x.Map(r.frontend, r.endpoint, u.of(setAffinityEndpoints)).DNAT(r.endpoint)
}

// keyWords is the number of registers that key fills.
func (p *program) keyWords(u use) uint32 {
	if u.nodePort {
		return 2
	}
	return p.frontendWords()
}
