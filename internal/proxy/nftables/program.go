// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// The chains that are always there.
const (
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
	chainForward     = "filter-forward"
	chainMartian     = "filter-prerouting"
	chainOutside     = "outside"
	chainInside      = "inside"
	chainReject      = "refuse"
	chainMasquerade  = "masquerading"
	chainNeeded      = "masquerading-where-needed"
)

// Hook numbers and priorities of nf_tables (enum nf_inet_hooks, enum
// nf_ip_hook_priorities).
const (
	hookPrerouting  = 0
	hookForward     = 2
	hookOutput      = 3
	hookPostrouting = 4

	prioDstNAT = -100
	prioSrcNAT = 100
	prioFilter = 0
	prioRaw    = -300
)

// chain is a chain with its rules.
type chain struct {
	nft.Chain
	rules []nft.Rule
}

// program is the constant part of a table: everything but elements, and the
// chains of the classes in use.
type program struct {
	table nft.Table
	fam   model.Family
	node  *model.Node
}

// chains gives the constant chains in an order in which they can be created:
// a chain stands before those that go to it.
func (p *program) chains() []chain {
	cs := []chain{
		p.chain(chainReject, nil, p.rejectRules()),
		p.chain(chainNeeded, nil, p.neededRules()),
		p.chain(chainMasquerade, nil, p.masqueradeRules()),
		p.chain(chainInside, nil, p.insideRules()),
		p.chain(chainOutside, nil, p.outsideRules()),
		p.chain(chainPrerouting, &nft.Hook{Type: "nat", Num: hookPrerouting, Priority: prioDstNAT}, p.preroutingRules()),
		p.chain(chainOutput, &nft.Hook{Type: "nat", Num: hookOutput, Priority: prioDstNAT}, p.outputRules()),
		p.chain(chainPostrouting, &nft.Hook{Type: "nat", Num: hookPostrouting, Priority: prioSrcNAT}, p.postroutingRules()),
		p.chain(chainForward, &nft.Hook{Type: "filter", Num: hookForward, Priority: prioFilter}, p.forwardRules()),
	}
	if p.fam == model.IPv4 && p.node.LocalhostNodePorts {
		cs = append(cs, p.chain(chainMartian, &nft.Hook{Type: "filter", Num: hookPrerouting, Priority: prioRaw}, p.martianRules()))
	}
	return cs
}

func (p *program) chain(name string, hook *nft.Hook, rules []nft.Rule) chain {
	return chain{nft.Chain{Table: p.table, Name: name, Hook: hook}, rules}
}

// preroutingRules tell apart who sends: the Pods of this node, or others.
func (p *program) preroutingRules() []nft.Rule {
	rules := []nft.Rule{p.restrictRule()}
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nft.Rule{Exprs: append(m, goTo(chainInside))})
	}
	return append(rules, nft.Rule{Exprs: []expr.Any{goTo(chainOutside)}})
}

// outputRules: what the node itself sends comes from inside.
func (p *program) outputRules() []nft.Rule {
	return []nft.Rule{p.restrictRule(), {Exprs: []expr.Any{goTo(chainInside)}}}
}

// restrictRule drops who is not in the source ranges.
func (p *program) restrictRule() nft.Rule {
	x := p.exprs().frontend(r0)
	x.lookup(r0, setRestricted)
	// The key is loaded again, so that the rule reads as it is meant.
	x.frontend(r0)
	x.saddr(r0 + p.frontendWords())
	x.lookupNot(r0, setSourceRanges)
	return nft.Rule{Comment: "loadBalancerSourceRanges", Exprs: append(x.list, verdict(expr.VerdictDrop))}
}

// outsideRules look up services themselves, although the inside chain does too:
// what is not there at a load balancer IP is refused, from outside alone.
func (p *program) outsideRules() []nft.Rule {
	lb := p.exprs()
	lb.daddr(r0)
	lb.lookup(r0, setLoadBalancerIPs)
	lb.fibLocal(r0, false)
	return []nft.Rule{
		{Comment: "externalTrafficPolicy Local", Exprs: p.dispatch(use{outside: true})},
		{Exprs: p.dispatch(use{outside: true, nodePort: true})},
		{Exprs: p.dispatch(use{})},
		{Comment: "no such port on a load balancer IP", Exprs: append(lb.list, goTo(chainReject))},
		{Exprs: []expr.Any{goTo(chainInside)}},
	}
}

func (p *program) insideRules() []nft.Rule {
	noPort := p.exprs()
	noPort.daddr(r0)
	noPort.lookup(r0, setClusterIPs)
	return []nft.Rule{
		{Exprs: p.dispatch(use{})},
		{Comment: "no such port on a ClusterIP", Exprs: append(noPort.list, goTo(chainReject))},
		{Exprs: p.dispatch(use{nodePort: true})},
	}
}

// dispatch goes to the chain of the frontend's class. The class passes
// through the packet's mark, because that is the only form that nft can
// list; the mark has its old value again before the rule ends:
//
//	mark set <frontend> map @services  mark set mark  mark vmap @classes
func (p *program) dispatch(u use) []expr.Any {
	x := p.exprs()
	if u.nodePort {
		x.fibLocal(r0, true)
		x.daddr(r0)
		x.lookup(r0, setNodePortAddresses)
	}
	x.key(u, r0)
	x.mapTo(r0, r0, u.of(setServices))
	key := x.throughMark(r0, r0+p.frontendWords())
	x.mapTo(key, unix.NFT_REG_VERDICT, u.of(setClasses))
	return x.list
}

// rejectRules answer what a closed port answers.
func (p *program) rejectRules() []nft.Rule {
	unreachable := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // ICMP_PORT_UNREACH
	if p.fam == model.IPv6 {
		unreachable.Code = 4 // ICMPV6_PORT_UNREACH
	}
	x := p.exprs()
	x.l4proto(r0)
	x.cmp(r0, expr.CmpOpEq, []byte{byte(model.TCP)})
	return []nft.Rule{
		{Exprs: append(x.list, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
		{Exprs: []expr.Any{unreachable}},
	}
}

// postroutingRules single out connections whose destination was translated.
func (p *program) postroutingRules() []nft.Rule {
	const dnat = 1 << 5 // IPS_DST_NAT
	x := p.exprs()
	x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATUS})
	x.and(r0, dnat)
	x.cmp(r0, expr.CmpOpNeq, make([]byte, 4))
	return []nft.Rule{{Exprs: append(x.list, goTo(chainMasquerade))}}
}

// masqueradeRules masquerade all, but where the endpoint is to see the client's
// address.
func (p *program) masqueradeRules() []nft.Rule {
	stays := p.exprs()
	stays.oifname(r0, expr.CmpOpEq, "lo")
	rules := []nft.Rule{{Comment: "never leaves this node", Exprs: append(stays.list, verdict(expr.VerdictReturn))}}
	if !p.node.MasqueradeAll {
		return append(rules, nft.Rule{Exprs: []expr.Any{goTo(chainNeeded)}})
	}
	for _, u := range []use{{}, {nodePort: true}} {
		keeps := p.exprs()
		keeps.dialled(u)
		keeps.lookup(r0, u.keepsClient())
		rules = append(rules,
			nft.Rule{Comment: "externalTrafficPolicy Local", Exprs: append(keeps.list, goTo(chainNeeded))},
			nft.Rule{Exprs: append(p.translatedHere(u), &expr.Masq{FullyRandom: true})})
	}
	return rules
}

// neededRules: see the table in package model.
func (p *program) neededRules() []nft.Rule {
	masq := &expr.Masq{FullyRandom: true}
	hairpin := p.exprs()
	hairpin.saddr(r0)
	hairpin.daddr(r0 + p.addrWords())
	hairpin.lookup(r0, setHairpin)
	rules := []nft.Rule{{Comment: "hairpin", Exprs: append(hairpin.list, masq)}}
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nft.Rule{Comment: "replies return by themselves", Exprs: append(m, verdict(expr.VerdictReturn))})
	}
	if p.fam == model.IPv4 {
		loopback := p.exprs()
		loopback.saddrMasked(r0, netip.MustParsePrefix("127.0.0.0/8"))
		rules = append(rules, nft.Rule{Exprs: append(loopback.list, masq)})
	}
	local := p.exprs()
	local.daddr(r0)
	local.lookup(r0, setLocalEndpoints)
	return append(rules,
		nft.Rule{Comment: "replies pass this node", Exprs: append(local.list, verdict(expr.VerdictReturn))},
		nft.Rule{Exprs: append(p.translatedHere(use{}), masq)},
		nft.Rule{Exprs: append(p.translatedHere(use{nodePort: true}), masq)})
}

// translatedHere matches connections that a rule of this table translated: by
// what the client dialled.
func (p *program) translatedHere(u use) []expr.Any {
	x := p.exprs()
	free := x.dialled(u)
	x.mapTo(r0, r0, u.of(setServices))
	x.cmp(x.throughMark(r0, free), expr.CmpOpNeq, make([]byte, 4))
	return x.list
}

// dialled loads what the client dialled, keyed as the elements are, and returns the
// next free register.
func (x *exprList) dialled(u use) uint32 {
	reg := uint32(r0)
	if !u.nodePort {
		x.add(x.p.originalDestination(reg))
		reg += x.p.addrWords()
	}
	x.l4proto(reg)
	x.add(&nft.CtOriginal{Ct: &expr.Ct{Register: reg + 1, Key: expr.CtKeyPROTODST}})
	return reg + 2
}

func (p *program) originalDestination(reg uint32) expr.Any {
	const dstIP, dstIP6 = 20, 22 // NFT_CT_DST_IP, NFT_CT_DST_IP6: nft lists NFT_CT_DST wrongly
	if p.fam == model.IPv6 {
		return &nft.CtOriginal{Ct: &expr.Ct{Register: reg, Key: dstIP6}}
	}
	return &nft.CtOriginal{Ct: &expr.Ct{Register: reg, Key: dstIP}}
}

// forwardRules keep packets that connection tracking does not recognise from
// reaching a Pod or its client untranslated: the receiver would answer with a
// reset and kill the connection (kubernetes#74839).
func (p *program) forwardRules() []nft.Rule {
	invalid := func() *exprList {
		x := p.exprs()
		x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATE})
		x.and(r0, expr.CtStateBitINVALID)
		x.cmp(r0, expr.CmpOpNeq, make([]byte, 4))
		return x
	}
	var rules []nft.Rule
	for _, m := range slices.Concat(p.fromLocalPods(), p.toLocalPods()) {
		rules = append(rules, nft.Rule{Exprs: append(append(invalid().list, m...), verdict(expr.VerdictDrop))})
	}
	return rules
}

// martianRules undo what route_localnet opens: the loopback range must not be
// reachable from outside (CVE-2020-8558).
func (p *program) martianRules() []nft.Rule {
	x := p.exprs()
	x.iifname(r0, expr.CmpOpNeq, "lo")
	x.daddrMasked(r0, netip.MustParsePrefix("127.0.0.0/8"))
	return []nft.Rule{{Exprs: append(x.list, verdict(expr.VerdictDrop))}}
}

// fromLocalPods gives the alternatives that match packets of this node's Pods.
func (p *program) fromLocalPods() [][]expr.Any {
	return p.localPods((*exprList).saddr, (*exprList).iifname)
}

func (p *program) toLocalPods() [][]expr.Any {
	return p.localPods((*exprList).daddr, (*exprList).oifname)
}

func (p *program) localPods(addr func(*exprList, uint32), name func(*exprList, uint32, expr.CmpOp, string)) [][]expr.Any {
	if len(p.node.PodInterfaces) == 0 {
		x := p.exprs()
		addr(x, r0)
		x.lookup(r0, setLocalPods)
		return [][]expr.Any{x.list}
	}
	var ms [][]expr.Any
	for _, pattern := range p.node.PodInterfaces {
		x := p.exprs()
		name(x, r0, expr.CmpOpEq, pattern)
		ms = append(ms, x.list)
	}
	return ms
}
