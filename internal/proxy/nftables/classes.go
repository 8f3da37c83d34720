// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// classChain gives the chain that picks an endpoint for the frontends of one
// class.
//
// A packet can overtake a commit: it has read its class, and then there are
// fewer endpoints than that class has slots. The slot that it picks is gone
// then, and the rule does not match. For such a packet the last but one rule
// tries the first slot, which is there as long as there is any. The last one
// drops: the client's retransmission finds the new state.
func (p *program) classChain(u use, c class) chain {
	rules := []nft.Rule{{Exprs: p.balance(u, c.slots())}}
	again := p.balance(u, 1)
	if c.affinity() > 0 {
		rules = p.affinityRules(u, c)
		again = p.pick(u, c, 1, false)
	}
	rules = append(rules,
		nft.Rule{Comment: "overtook a commit", Exprs: again},
		nft.Rule{Exprs: []expr.Any{verdict(expr.VerdictDrop)}})
	return p.chain(u.chain(c), nil, rules)
}

// balance is the whole of load balancing:
//
//	dnat to <frontend> . numgen random mod n map @endpoints
func (p *program) balance(u use, slots int) []expr.Any {
	x := p.exprs()
	x.key(u, r0)
	x.add(&expr.Numgen{Register: r0 + p.keyWords(u), Modulus: uint32(slots), Type: unix.NFT_NG_RANDOM})
	x.mapTo(r0, r0, u.of(setEndpoints))
	x.dnat(r0)
	return x.list
}

// affinityRules: the first sends a client where it was sent before, by this or
// another frontend of the Service port, if that endpoint is still there, and the
// time-out begins anew. The second picks an endpoint and remembers its number. The
// third does without when the map of clients is full.
func (p *program) affinityRules(u use, c class) []nft.Rule {
	r := p.affinityRegisters(u)
	known := p.exprs()
	known.client(u, r)
	known.mapTo(r.client, r.free+1, setAffinity)
	known.throughMarkTo(r.free+1, r.free, r.number)
	known.mapTo(r.frontend, r.endpoint, u.of(setAffinityEndpoints))
	known.dynset(unix.NFT_DYNSET_OP_UPDATE, r, c)
	known.dnat(r.endpoint)
	return []nft.Rule{{Exprs: known.list}, {Exprs: p.pick(u, c, c.slots(), true)}, {Exprs: p.pick(u, c, c.slots(), false)}}
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
func (x *exprList) client(u use, r affinityRegisters) {
	x.saddr(r.client)
	x.key(u, r.frontend)
	x.mapTo(r.frontend, r.free+1, u.groups())
	x.throughMarkTo(r.free+1, r.free, r.group)
}

// pick leads to the endpoint of a random slot, and remembers it or not.
func (p *program) pick(u use, c class, slots int, remember bool) []expr.Any {
	r := p.affinityRegisters(u)
	x := p.exprs()
	if remember {
		x.client(u, r)
	} else {
		x.key(u, r.frontend)
	}
	x.add(&expr.Numgen{Register: r.number, Modulus: uint32(slots), Type: unix.NFT_NG_RANDOM})
	x.mapTo(r.frontend, r.free+1, u.of(setAffinitySlots))
	x.throughMarkTo(r.free+1, r.free, r.number)
	if remember {
		// An update never changes the value of an element that exists.
		const opDelete = 2 // NFT_DYNSET_OP_DELETE
		x.dynset(opDelete, r, c)
		x.dynset(unix.NFT_DYNSET_OP_UPDATE, r, c)
	}
	x.mapTo(r.frontend, r.endpoint, u.of(setAffinityEndpoints))
	x.dnat(r.endpoint)
	return x.list
}

// key loads the frontend, as its elements are keyed.
func (x *exprList) key(u use, reg uint32) {
	if u.nodePort {
		x.nodePort(reg)
		return
	}
	x.frontend(reg)
}

// keyWords is the number of registers that key fills.
func (p *program) keyWords(u use) uint32 {
	if u.nodePort {
		return 2
	}
	return p.frontendWords()
}

// dynset writes client . group -> number into the affinity map.
func (x *exprList) dynset(op uint32, r affinityRegisters, c class) {
	e := &expr.Dynset{SrcRegKey: r.client, SrcRegData: r.number, SetName: setAffinity.String(), Operation: op}
	if op == unix.NFT_DYNSET_OP_UPDATE {
		e.Timeout = c.affinity()
	}
	x.add(e)
}

// dnat translates to the endpoint that was looked up into reg.
func (x *exprList) dnat(reg uint32) {
	family, port := uint32(unix.NFPROTO_IPV4), reg+1
	if x.p.fam == model.IPv6 {
		family, port = unix.NFPROTO_IPV6, reg+4
	}
	x.add(&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: family,
		RegAddrMin: reg, RegAddrMax: reg, RegProtoMin: port, RegProtoMax: port, Specified: true,
	})
}
