// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"net/netip"
	"slices"

	gexpr "github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
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

// program is the constant part of a table: everything but elements, and the
// chains of the classes in use.
type program struct {
	table nft.Table
	fam   model.Family
	node  *model.Node
}

// chains returns the constant chains in an order in which they can be created:
// a chain stands before those that go to it.
func (p *program) chains() []nft.Chain {
	cs := []nft.Chain{
		p.chain(chainReject, nil, p.rejectRules()),
		p.chain(chainNeeded, nil, p.neededRules()),
		p.chain(chainMasquerade, nil, p.masqueradeRules()),
		p.chain(chainInside, nil, p.insideRules()),
		p.chain(chainOutside, nil, p.outsideRules()),
		p.chain(chainPrerouting, &nft.Hook{Type: "nat", Num: expr.HookPrerouting, Priority: expr.PriorityDstNAT}, p.preroutingRules()),
		p.chain(chainOutput, &nft.Hook{Type: "nat", Num: expr.HookOutput, Priority: expr.PriorityDstNAT}, p.outputRules()),
		p.chain(chainPostrouting, &nft.Hook{Type: "nat", Num: expr.HookPostrouting, Priority: expr.PrioritySrcNAT}, p.postroutingRules()),
		p.chain(chainForward, &nft.Hook{Type: "filter", Num: expr.HookForward, Priority: expr.PriorityFilter}, p.forwardRules()),
	}
	if p.fam == model.IPv4 && p.node.LocalhostNodePorts {
		cs = append(cs, p.chain(chainMartian, &nft.Hook{Type: "filter", Num: expr.HookPrerouting, Priority: expr.PriorityRaw}, p.martianRules()))
	}
	return cs
}

func (p *program) chain(name string, hook *nft.Hook, rules []nft.Rule) nft.Chain {
	return nft.Chain{Table: p.table, Name: name, Hook: hook, Rules: rules}
}

// preroutingRules tell apart who sends: the Pods of this node, or others.
func (p *program) preroutingRules() []nft.Rule {
	rules := []nft.Rule{p.restrictRule()}
	for _, m := range p.fromLocalPods() {
		rules = append(rules, m.Goto(chainInside).Rule(""))
	}
	return append(rules, p.exprs().Goto(chainOutside).Rule(""))
}

// outputRules: what the node itself sends comes from inside.
func (p *program) outputRules() []nft.Rule {
	return []nft.Rule{p.restrictRule(), p.exprs().Goto(chainInside).Rule("")}
}

// restrictRule drops clients that are not in the source ranges. The key is loaded
// twice, so that the rule reads as it is meant.
func (p *program) restrictRule() nft.Rule {
	return p.exprs().Frontend(r0).Lookup(r0, setRestricted).
		Frontend(r0).Saddr(r0+p.frontendWords()).LookupNot(r0, setSourceRanges).
		Drop().Rule("loadBalancerSourceRanges")
}

// outsideRules look up services themselves, although the inside chain does too:
// what is not there at a load balancer IP is refused, from outside alone.
func (p *program) outsideRules() []nft.Rule {
	return []nft.Rule{
		p.dispatch(use{outside: true}).Rule("externalTrafficPolicy Local"),
		p.dispatch(use{outside: true, nodePort: true}).Rule(""),
		p.dispatch(use{}).Rule(""),
		p.exprs().Daddr(r0).Lookup(r0, setLoadBalancerIPs).LocalDestination(false).
			Goto(chainReject).Rule("no such port on a load balancer IP"),
		p.exprs().Goto(chainInside).Rule(""),
	}
}

func (p *program) insideRules() []nft.Rule {
	return []nft.Rule{
		p.dispatch(use{}).Rule(""),
		p.exprs().Daddr(r0).Lookup(r0, setClusterIPs).Goto(chainReject).Rule("no such port on a ClusterIP"),
		p.dispatch(use{nodePort: true}).Rule(""),
	}
}

// dispatch goes to the chain of the frontend's class. The class passes
// through the packet's mark, because that is the only form that nft can
// list; the mark has its old value again before the rule ends:
//
//	mark set <frontend> map @services  mark set mark  mark vmap @classes
func (p *program) dispatch(u use) *expr.List {
	x := p.exprs()
	if u.nodePort {
		x.LocalDestination(true).Daddr(r0).Lookup(r0, setNodePortAddresses)
	}
	free := r0 + p.frontendWords()
	return throughMark(key(x, u, r0).Map(r0, r0, u.of(setServices)), r0, free, free+1).
		Map(free+1, unix.NFT_REG_VERDICT, u.of(setClasses))
}

// rejectRules answer what a closed port answers.
func (p *program) rejectRules() []nft.Rule {
	return []nft.Rule{p.exprs().Protocol(uint8(model.TCP)).RejectTCP().Rule(""), p.exprs().RejectPort().Rule("")}
}

// postroutingRules single out connections whose destination was translated.
func (p *program) postroutingRules() []nft.Rule {
	const dnat = 1 << 5 // IPS_DST_NAT
	return []nft.Rule{p.exprs().Status(dnat).Goto(chainMasquerade).Rule("")}
}

// masqueradeRules masquerade all, but where the endpoint is to see the client's
// address.
func (p *program) masqueradeRules() []nft.Rule {
	rules := []nft.Rule{p.exprs().OIFName(gexpr.CmpOpEq, "lo").Return().Rule("never leaves this node")}
	if !p.node.MasqueradeAll {
		return append(rules, p.exprs().Goto(chainNeeded).Rule(""))
	}
	for _, u := range []use{{}, {nodePort: true}} {
		keeps, _ := p.dialled(u)
		rules = append(rules,
			keeps.Lookup(r0, u.keepsClient()).Goto(chainNeeded).Rule("externalTrafficPolicy Local"),
			p.translatedHere(u).Masquerade().Rule(""))
	}
	return rules
}

// neededRules: see the table in package model.
func (p *program) neededRules() []nft.Rule {
	rules := []nft.Rule{p.exprs().Saddr(r0).Daddr(r0+p.addrWords()).Lookup(r0, setHairpin).Masquerade().Rule("hairpin")}
	for _, m := range p.fromLocalPods() {
		rules = append(rules, m.Return().Rule("replies return by themselves"))
	}
	if p.fam == model.IPv4 {
		rules = append(rules, p.exprs().Saddr(r0).In(r0, loopbackRange).Masquerade().Rule(""))
	}
	return append(rules,
		p.exprs().Daddr(r0).Lookup(r0, setLocalEndpoints).Return().Rule("replies pass this node"),
		p.translatedHere(use{}).Masquerade().Rule(""),
		p.translatedHere(use{nodePort: true}).Masquerade().Rule(""))
}

var loopbackRange = netip.MustParsePrefix("127.0.0.0/8")

// translatedHere matches connections that a rule of this table translated: by
// what the client dialled.
func (p *program) translatedHere(u use) *expr.List {
	x, free := p.dialled(u)
	return throughMark(x.Map(r0, r0, u.of(setServices)), r0, free, free+1).NotEqual(free+1, expr.Word(0)...)
}

// dialled loads what the client dialled, keyed as the elements are, and returns the
// next free register.
func (p *program) dialled(u use) (x *expr.List, free uint32) {
	x, free = p.exprs(), uint32(r0)
	if !u.nodePort {
		x.OriginalDaddr(free)
		free += p.addrWords()
	}
	return x.L4Proto(free).OriginalDport(free + 1), free + 2
}

// forwardRules keep packets that connection tracking does not recognise from
// reaching a Pod or its client untranslated: the receiver would answer with a
// reset and kill the connection (kubernetes#74839).
func (p *program) forwardRules() []nft.Rule {
	var rules []nft.Rule
	for _, m := range slices.Concat(p.fromLocalPods(), p.toLocalPods()) {
		rules = append(rules, p.exprs().State(gexpr.CtStateBitINVALID).Then(m).Drop().Rule(""))
	}
	return rules
}

// martianRules undo what route_localnet opens: the loopback range must not be
// reachable from outside (CVE-2020-8558).
func (p *program) martianRules() []nft.Rule {
	return []nft.Rule{p.exprs().IIFName(gexpr.CmpOpNeq, "lo").Daddr(r0).In(r0, loopbackRange).Drop().Rule("")}
}

// fromLocalPods returns the alternatives that match packets of this node's Pods.
func (p *program) fromLocalPods() []*expr.List {
	return p.localPods((*expr.List).Saddr, (*expr.List).IIFName)
}

func (p *program) toLocalPods() []*expr.List {
	return p.localPods((*expr.List).Daddr, (*expr.List).OIFName)
}

func (p *program) localPods(addr func(*expr.List, uint32) *expr.List, name func(*expr.List, gexpr.CmpOp, string) *expr.List) []*expr.List {
	if len(p.node.PodInterfaces) == 0 {
		return []*expr.List{addr(p.exprs(), r0).Lookup(r0, setLocalPods)}
	}
	var ms []*expr.List
	for _, pattern := range p.node.PodInterfaces {
		ms = append(ms, name(p.exprs(), gexpr.CmpOpEq, pattern))
	}
	return ms
}

// r0 is the first of the sixteen 4-byte registers.
const r0 = expr.R0

func (p *program) exprs() *expr.List { return expr.For(p.table.Family) }

func (p *program) addrWords() uint32 { return expr.Words(p.table.Family) }

func (p *program) frontendWords() uint32 { return p.addrWords() + 2 }

// key loads the frontend, as its elements are keyed.
func key(x *expr.List, u use, reg uint32) *expr.List {
	if u.nodePort {
		return x.NodePort(reg)
	}
	return x.Frontend(reg)
}

// throughMark copies the value in reg to another register, in which nft knows it as
// "meta mark". The packet's mark passes through saved and is unchanged afterwards.
func throughMark(x *expr.List, reg, saved, to uint32) *expr.List {
	return x.Mark(saved).SetMark(reg).Mark(to).SetMark(saved)
}
