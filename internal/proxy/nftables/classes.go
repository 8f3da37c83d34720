// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
)

// classChain gives the chain that picks an endpoint for the frontends of one
// class. Its last rule drops, which happens only to a packet that overtakes a
// commit: the client's retransmission finds the new state.
func (p *program) classChain(u use, c class) chain {
	rules := []nfnl.Rule{{Exprs: p.balance(u, c)}}
	if c.affinity() > 0 {
		rules = p.affinityRules(u, c)
	}
	rules = append(rules, nfnl.Rule{Exprs: []expr.Any{verdict(expr.VerdictDrop)}})
	return p.chain(u.chain(c), nil, rules)
}

// balance is the whole of load balancing:
//
//	dnat to <frontend> . numgen random mod n map @endpoints
func (p *program) balance(u use, c class) []expr.Any {
	x := p.exprs()
	x.key(u, r0)
	x.add(&expr.Numgen{Register: r0 + p.keyWords(u), Modulus: uint32(c.slots()), Type: unix.NFT_NG_RANDOM})
	x.mapTo(r0, r0, u.of(setEndpoints))
	x.dnat(r0)
	return x.list
}

// affinityRules: the first sends a client where it was sent before, if that
// endpoint is still there, and the time-out begins anew. The second picks an
// endpoint and remembers its number. The third does without when the map of
// clients is full.
//
//	registers: client | frontend | number | 2 of scratch, later the endpoint
func (p *program) affinityRules(u use, c class) []nfnl.Rule {
	const client = r0
	frontend := client + p.addrWords()
	number := frontend + p.keyWords(u)
	free := number + 1

	known := p.exprs()
	known.saddr(client)
	known.key(u, frontend)
	known.mapTo(client, free+1, u.affinity())
	known.throughMarkTo(free+1, free, number)
	// The endpoint goes behind the number, which the update still needs.
	known.mapTo(frontend, free, u.of(setAffinityEndpoints))
	known.dynset(unix.NFT_DYNSET_OP_UPDATE, client, number, u, c)
	known.dnat(free)

	pick := func(remember bool) []expr.Any {
		x := p.exprs()
		x.saddr(client)
		x.key(u, frontend)
		x.add(&expr.Numgen{Register: number, Modulus: uint32(c.slots()), Type: unix.NFT_NG_RANDOM})
		x.mapTo(frontend, free+1, u.of(setAffinitySlots))
		x.throughMarkTo(free+1, free, number)
		if remember {
			// An update never changes the value of an element that exists.
			const opDelete = 2 // NFT_DYNSET_OP_DELETE
			x.dynset(opDelete, client, number, u, c)
			x.dynset(unix.NFT_DYNSET_OP_UPDATE, client, number, u, c)
		}
		x.mapTo(frontend, free, u.of(setAffinityEndpoints))
		x.dnat(free)
		return x.list
	}
	return []nfnl.Rule{{Exprs: known.list}, {Exprs: pick(true)}, {Exprs: pick(false)}}
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

// dynset writes client . frontend -> number into the affinity map.
func (x *exprList) dynset(op, key, data uint32, u use, c class) {
	e := &expr.Dynset{SrcRegKey: key, SrcRegData: data, SetName: u.affinity().String(), Operation: op}
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
