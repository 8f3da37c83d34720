// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	gexpr "github.com/google/nftables/expr"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Chains of a family's table.
const (
	chainRefuse     = "refuse"
	chainAct        = "act"
	chainActInside  = "act-inside"
	chainOther      = "other"
	chainInside     = "inside"
	chainOutside    = "outside"
	chainPrerouting = "prerouting"
	chainOutput     = "output"
	chainMasquerade = "masquerading"
	chainNAT        = "nat-postrouting"
	chainLoopback   = "nat-output"
	chainUnmark     = "unmark"
	chainARP        = "input"
	chainReplies    = "replies"
	chainForwarded  = "postrouting"
	chainDelivered  = "input"
)

// Packets are marked behind connection tracking (-200) and before IPVS (-98 on
// the way out, 98 and 99 on the way in), and lose the mark behind everything.
const (
	hookARPInput = 0
	prioFirst    = -400
	prioLast     = 225
)

// program builds the rules of one family; they depend on the node only.
type program struct {
	fam  model.Family
	node *model.Node
}

// chains are in an order in which they can be created: a chain stands before
// those that go to it.
func (p *program) chains() []nft.Chain {
	make := func(name string, hook *nft.Hook, rules []nft.Rule) nft.Chain {
		return nft.Chain{Table: tableOf(p.fam), Name: name, Hook: hook, Rules: rules}
	}
	chains := []nft.Chain{
		make(chainRefuse, nil, p.refuse()),
		make(chainAct, nil, p.act(false)),
		make(chainActInside, nil, p.act(true)),
		make(chainOther, nil, p.other()),
		make(chainInside, nil, p.inside()),
		make(chainOutside, nil, p.outside()),
		make(chainMasquerade, nil, p.masquerade()),
		make(chainPrerouting, &nft.Hook{Type: "filter", Num: expr.HookPrerouting, Priority: expr.PriorityMangle}, p.prerouting()),
		make(chainOutput, &nft.Hook{Type: "filter", Num: expr.HookOutput, Priority: expr.PriorityMangle}, p.output()),
		make(chainNAT, &nft.Hook{Type: "nat", Num: expr.HookPostrouting, Priority: expr.PrioritySrcNAT}, p.nat()),
		make(chainUnmark, &nft.Hook{Type: "filter", Num: expr.HookPostrouting, Priority: prioLast}, p.unmark()),
	}
	if p.loopback() {
		chains = append(chains, make(chainLoopback, &nft.Hook{Type: "nat", Num: expr.HookOutput, Priority: expr.PriorityDstNAT}, p.natLoopback()))
	}
	return chains
}

// loopback says that NodePorts answer at 127.0.0.1. IPVS sends nothing elsewhere
// that comes from there, so those packets are translated here, unmarked, and
// pass it by.
func (p *program) loopback() bool { return p.fam == model.IPv4 && p.node.LocalhostNodePorts }

// natLoopback takes a random slot of the NodePort. The mark has it masqueraded,
// and names no virtual server.
func (p *program) natLoopback() []nft.Rule {
	const to = r0 + 4
	return []nft.Rule{p.toLoopback().Daddr(r0).Lookup(r0, setNodePortAddresses).
		NodePort(r0).Random(r0+2, loopbackSlots).Map(r0, to, setLoopbackPorts).
		MarkWith(uint32(markBase)).DNAT(to).Rule("NodePorts at 127.0.0.1")}
}

// toLoopback matches packets to 127.0.0.0/8.
func (p *program) toLoopback() *expr.List { return p.exprs().Network(r0, 16, 16, 1).Equal(r0, 127) }

func (p *program) prerouting() []nft.Rule {
	var rules []nft.Rule
	if p.loopback() {
		rules = append(rules, p.toLoopback().IIFName(gexpr.CmpOpNeq, "lo").Drop().Rule("undo what route_localnet opens (CVE-2020-8558)"))
	}
	rules = append(rules, p.entrance()...)
	for _, m := range p.fromLocalPods() {
		rules = append(rules, m.Goto(chainInside).Rule(""))
	}
	return append(rules, p.exprs().Goto(chainOutside).Rule(""))
}

func (p *program) output() []nft.Rule {
	rules := p.entrance()
	if p.loopback() {
		rules = append(rules, p.toLoopback().Accept().Rule("translated in "+chainLoopback))
	}
	return append(rules, p.exprs().Goto(chainInside).Rule(""))
}

// isNew matches the first packet of a connection.
func (p *program) isNew() *expr.List { return p.exprs().State(gexpr.CtStateBitNEW) }

// entrance lets replies pass and keeps out clients that are not in the source
// ranges.
func (p *program) entrance() []nft.Rule {
	return []nft.Rule{
		p.exprs().Reply().Accept().Rule(""),
		p.isNew().Frontend(r0).Lookup(r0, setRestricted).
			Frontend(r0).Saddr(r0+expr.Words(p.family())+2).LookupNot(r0, setSourceRanges).
			Drop().Rule("loadBalancerSourceRanges"),
	}
}

func (p *program) outside() []nft.Rule {
	return []nft.Rule{
		p.marked(setServicesOutside).Goto(chainAct).Rule("externalTrafficPolicy Local"),
		p.marked(setServices).Goto(chainAct).Rule(""),
		p.noSuchPort(),
		p.marked(setNodePortsOutside).Goto(chainAct).Rule("externalTrafficPolicy Local"),
		p.marked(setNodePorts).Goto(chainAct).Rule(""),
	}
}

func (p *program) inside() []nft.Rule {
	return []nft.Rule{
		p.marked(setServices).Goto(chainActInside).Rule(""),
		p.noSuchPort(),
		p.marked(setNodePorts).Goto(chainActInside).Rule(""),
	}
}

// noSuchPort ends here what dials an address of Services at another port:
// behind the local route a process might listen on all addresses. So it is from
// inside too, where other modes let what dials a load balancer IP go its way.
func (p *program) noSuchPort() nft.Rule {
	return p.exprs().Daddr(r0).Lookup(r0, setAddresses).Goto(chainOther).Rule("no such port")
}

// other is for packets to a Service's address but to none of its ports.
func (p *program) other() []nft.Rule { return []nft.Rule{p.isNew().Goto(chainRefuse).Rule("")} }

// marked sets the packet's mark to what a services map says; without an element
// it does not match.
func (p *program) marked(set setID) *expr.List {
	x := p.exprs()
	if set == setNodePorts || set == setNodePortsOutside {
		x.LocalDestination(true).Daddr(r0).Lookup(r0, setNodePortAddresses).NodePort(r0)
	} else {
		x.Frontend(r0)
	}
	return x.Map(r0, r0, set).SetMark(r0)
}

// act does what the mark says. Only new connections are refused: those that
// IPVS has go on until they end.
func (p *program) act(inside bool) []nft.Rule {
	// IPVS has forgotten a connection whose time was over, or whose endpoint is
	// gone for good. The kernel itself can't answer from the address.
	lost := p.isNew().Protocol(uint8(model.TCP)).TCPFlags(expr.SYN, gexpr.CmpOpEq, 0)
	rules := []nft.Rule{
		lost.Goto(chainRefuse).Rule("TCP that begins in the middle"),
		p.isNew().Marked(uint32(actionReject)).Goto(chainRefuse).Rule(""),
		p.isNew().Marked(uint32(actionDrop)).Drop().Rule(""),
		p.ours(gexpr.CmpOpNeq).MarkWith(0).Rule("refused, but not new"),
	}
	byAddress := []action{markBase}
	if p.node.MasqueradeAll {
		byAddress = append(byAddress, markBase|markKeep)
	}
	for _, a := range byAddress {
		if inside {
			rules = append(rules, p.exprs().Marked(uint32(a)).MarkWith(uint32(a|markInside)).Rule(""))
		}
	}
	return rules
}

// refuse answers what a closed port answers.
func (p *program) refuse() []nft.Rule {
	is := func(protocol model.Protocol) *expr.List { return p.exprs().Protocol(uint8(protocol)) }
	return []nft.Rule{
		p.exprs().MarkWith(0).Rule(""),
		is(model.TCP).RejectTCP().Rule(""),
		is(model.UDP).RejectPort().Rule(""),
		is(model.SCTP).RejectPort().Rule(""),
	}
}

// ours compares the part of the mark that says whose it is.
func (p *program) ours(op gexpr.CmpOp) *expr.List { return p.markIs(markMask, op, markBase) }

// markIs compares some bits of the mark.
func (p *program) markIs(mask action, op gexpr.CmpOp, a action) *expr.List {
	return p.exprs().Mark(r0).And(r0, expr.Word(uint32(mask))...).Compare(r0, op, expr.Word(uint32(a))...)
}

func (p *program) nat() []nft.Rule {
	return []nft.Rule{p.ours(gexpr.CmpOpEq).Goto(chainMasquerade).Rule("")}
}

// masquerade: see the table in package model.
func (p *program) masquerade() []nft.Rule {
	rules := []nft.Rule{p.exprs().OIFName(gexpr.CmpOpEq, "lo").Return().Rule("never leaves this node")}
	if p.node.MasqueradeAll {
		rules = append(rules, p.markIs(markKeep, gexpr.CmpOpEq, 0).Masquerade().Rule("all but externalTrafficPolicy Local"))
	}
	rules = append(rules,
		p.exprs().Saddr(r0).Daddr(r0+expr.Words(p.family())).Lookup(r0, setHairpin).Masquerade().Rule("hairpin"),
		p.exprs().Saddr(r0).Lookup(r0, setAddresses).Masquerade().Rule("the local route's own source"),
		p.wasFromLocalPod().Return().Rule("replies return by themselves"))
	if p.fam == model.IPv4 {
		rules = append(rules, p.exprs().Network(r0, 12, 12, 1).Equal(r0, 127).Masquerade().Rule("loopback"))
	}
	return append(rules,
		p.exprs().Daddr(r0).Lookup(r0, setLocalEndpoints).Return().Rule("replies pass this node"),
		p.exprs().Masquerade().Rule(""))
}

// unmark gives no other chain of later hooks, and no tunnel, our mark to see.
func (p *program) unmark() []nft.Rule {
	return []nft.Rule{p.ours(gexpr.CmpOpEq).MarkWith(0).Rule("")}
}

// replies give what IPVS has translated the source that its client dialled. IPVS
// finds the connection of a reply by client and endpoint alone, and takes the latest
// where a client uses one port for two frontends of an endpoint, even one that has
// ended: that client would never see the reply. Connection tracking
// knows which of the two it is, as it has the endpoint see another port for one.
// All replies pass here, and to write what they have already changes nothing: the
// kernel's fib does not know the addresses of the table of routes for its own, and
// there is no cheaper way to tell. First of all in postrouting, so that no chain
// sees the wrong source.
func (p *program) replies() []nft.Chain {
	table := repliesOf(p.fam)
	const dnat = 1 << 5 // IPS_DST_NAT
	// The kernel does so itself for what was translated otherwise.
	entrance := []nft.Rule{p.exprs().Reply().NoStatus(dnat).Goto(chainReplies).Rule("")}
	var rules []nft.Rule
	for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		rules = append(rules, p.fromDialled(protocol).Rule(""))
	}
	return []nft.Chain{
		{Table: table, Name: chainReplies, Rules: rules},
		{Table: table, Name: chainForwarded, Hook: &nft.Hook{Type: "filter", Num: expr.HookPostrouting, Priority: prioFirst}, Rules: entrance},
		{Table: table, Name: chainDelivered, Hook: &nft.Hook{Type: "filter", Num: expr.HookInput, Priority: expr.PrioritySrcNAT + 1}, Rules: entrance},
	}
}

// fromDialled makes what was dialled the packet's source.
func (p *program) fromDialled(protocol model.Protocol) *expr.List {
	x := p.exprs().Protocol(uint8(protocol)).OriginalDaddr(r0).SetSaddr(r0)
	checksums := map[model.Protocol]uint32{model.TCP: 16, model.UDP: 6}
	at, ok := checksums[protocol]
	if !ok {
		return x // Linux 5.9 cannot compute that of SCTP
	}
	return x.OriginalDport(r0).SetSport(r0, at)
}

// fromLocalPods returns the alternatives that match packets of this node's Pods
// as they come in.
func (p *program) fromLocalPods() []*expr.List {
	if len(p.node.PodInterfaces) == 0 {
		return []*expr.List{p.exprs().Saddr(r0).Lookup(r0, setLocalPods)}
	}
	var ms []*expr.List
	for _, pattern := range p.node.PodInterfaces {
		ms = append(ms, p.exprs().IIFName(gexpr.CmpOpEq, pattern))
	}
	return ms
}

// wasFromLocalPod matches the same in postrouting, where IPVS has taken the
// incoming interface away: it came from inside, but not from the node itself.
func (p *program) wasFromLocalPod() *expr.List {
	if len(p.node.PodInterfaces) == 0 {
		return p.exprs().Saddr(r0).Lookup(r0, setLocalPods)
	}
	return p.markIs(markInside, gexpr.CmpOpEq, markInside).LocalSource(false)
}

// arpChain keeps the kernel from answering for the addresses, and from
// learning of other hosts that do: the announcer sees the packets anyway.
func arpChain() nft.Chain {
	const arpTargetAddress = 24
	return nft.Chain{
		Table: arpTable, Name: chainARP, Hook: &nft.Hook{Type: "filter", Num: hookARPInput},
		Rules: []nft.Rule{expr.For(arpTable.Family).Network(r0, arpTargetAddress, 0, 4).Lookup(r0, setAddresses).Drop().Rule("")},
	}
}

// r0 is the first of the sixteen 4-byte registers.
const r0 = expr.R0

func (p *program) family() nft.Family { return tableOf(p.fam).Family }

func (p *program) exprs() *expr.List { return expr.For(p.family()) }
