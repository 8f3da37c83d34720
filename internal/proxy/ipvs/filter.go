// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
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

// Hook numbers and priorities (enum nf_inet_hooks, enum nf_ip_hook_priorities).
// Packets are marked behind connection tracking (-200) and before IPVS (-98 on
// the way out, 98 and 99 on the way in).
const (
	hookPrerouting  = 0
	hookInput       = 1
	hookOutput      = 3
	hookPostrouting = 4
	hookARPInput    = 0

	prioFirst  = -400
	prioMangle = -150
	prioDstNAT = -100
	prioSrcNAT = 100
	prioLast   = 225
)

// program builds the rules of one family; they depend on the node only.
type program struct {
	fam  model.Family
	node *model.Node
}

type chain struct {
	nft.Chain
	rules []nft.Rule
}

// chains are in an order in which they can be created: a chain stands before
// those that go to it.
func (p *program) chains() []chain {
	make := func(name string, hook *nft.Hook, rules []nft.Rule) chain {
		return chain{nft.Chain{Table: tableOf(p.fam), Name: name, Hook: hook}, rules}
	}
	chains := []chain{
		make(chainRefuse, nil, p.refuse()),
		make(chainAct, nil, p.act(false)),
		make(chainActInside, nil, p.act(true)),
		make(chainOther, nil, p.other()),
		make(chainInside, nil, p.inside()),
		make(chainOutside, nil, p.outside()),
		make(chainMasquerade, nil, p.masquerade()),
		make(chainPrerouting, &nft.Hook{Type: "filter", Num: hookPrerouting, Priority: prioMangle}, p.prerouting()),
		make(chainOutput, &nft.Hook{Type: "filter", Num: hookOutput, Priority: prioMangle}, p.output()),
		make(chainNAT, &nft.Hook{Type: "nat", Num: hookPostrouting, Priority: prioSrcNAT}, p.nat()),
		make(chainUnmark, &nft.Hook{Type: "filter", Num: hookPostrouting, Priority: prioLast}, p.unmark()),
	}
	if p.loopback() {
		chains = append(chains, make(chainLoopback, &nft.Hook{Type: "nat", Num: hookOutput, Priority: prioDstNAT}, p.natLoopback()))
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
	const addr, port = r0 + 4, r0 + 5
	x := p.exprs()
	x.toLoopback()
	x.daddr(r0)
	x.lookup(r0, setNodePortAddresses, false)
	x.l4proto(r0)
	x.dport(r0 + 1)
	x.add(&expr.Numgen{Register: r0 + 2, Modulus: loopbackSlots, Type: unix.NFT_NG_RANDOM})
	x.add(&expr.Lookup{SourceRegister: r0, DestRegister: addr, IsDestRegSet: true, SetName: setLoopbackPorts.String()})
	x.markWith(markBase)
	x.add(&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
		RegAddrMin: addr, RegAddrMax: addr, RegProtoMin: port, RegProtoMax: port, Specified: true,
	})
	return []nft.Rule{{Comment: "NodePorts at 127.0.0.1", Exprs: x.list}}
}

func (p *program) prerouting() []nft.Rule {
	var rules []nft.Rule
	if p.loopback() {
		x := p.exprs()
		x.toLoopback()
		x.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: r0})
		x.add(&expr.Cmp{Op: expr.CmpOpNeq, Register: r0, Data: ifname("lo")})
		rules = append(rules, nft.Rule{Comment: "undo what route_localnet opens (CVE-2020-8558)", Exprs: append(x.list, verdict(expr.VerdictDrop))})
	}
	rules = append(rules, p.entrance()...)
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nft.Rule{Exprs: append(m, goTo(chainInside))})
	}
	return append(rules, nft.Rule{Exprs: []expr.Any{goTo(chainOutside)}})
}

func (p *program) output() []nft.Rule {
	rules := p.entrance()
	if p.loopback() {
		x := p.exprs()
		x.toLoopback()
		rules = append(rules, nft.Rule{Comment: "translated in " + chainLoopback, Exprs: append(x.list, verdict(expr.VerdictAccept))})
	}
	return append(rules, nft.Rule{Exprs: []expr.Any{goTo(chainInside)}})
}

// entrance lets replies pass and keeps out who is not in the source ranges.
func (p *program) entrance() []nft.Rule {
	reply := p.exprs()
	reply.reply()
	x := p.exprs()
	x.isNew()
	x.frontend(r0)
	x.lookup(r0, setRestricted, false)
	x.frontend(r0)
	x.saddr(r0 + p.words() + 2)
	x.lookup(r0, setSourceRanges, true)
	return []nft.Rule{
		{Exprs: append(reply.list, verdict(expr.VerdictAccept))},
		{Comment: "loadBalancerSourceRanges", Exprs: append(x.list, verdict(expr.VerdictDrop))},
	}
}

func (p *program) outside() []nft.Rule {
	return []nft.Rule{
		{Comment: "externalTrafficPolicy Local", Exprs: p.marked(setServicesOutside, chainAct)},
		{Exprs: p.marked(setServices, chainAct)},
		p.noSuchPort(),
		{Comment: "externalTrafficPolicy Local", Exprs: p.marked(setNodePortsOutside, chainAct)},
		{Exprs: p.marked(setNodePorts, chainAct)},
	}
}

func (p *program) inside() []nft.Rule {
	return []nft.Rule{
		{Exprs: p.marked(setServices, chainActInside)},
		p.noSuchPort(),
		{Exprs: p.marked(setNodePorts, chainActInside)},
	}
}

// noSuchPort ends here what dials an address of Services at another port:
// behind the local route somebody might listen on all addresses. So it is from
// inside too, where other modes let what dials a load balancer IP go its way.
func (p *program) noSuchPort() nft.Rule {
	x := p.exprs()
	x.daddr(r0)
	x.lookup(r0, setAddresses, false)
	return nft.Rule{Comment: "no such port", Exprs: append(x.list, goTo(chainOther))}
}

// other is for packets to a Service's address but to none of its ports.
func (p *program) other() []nft.Rule {
	x := p.exprs()
	x.isNew()
	return []nft.Rule{{Exprs: append(x.list, goTo(chainRefuse))}}
}

// marked sets the packet's mark to what a services map says and goes on in
// next; without an element nothing happens.
func (p *program) marked(set setID, next string) []expr.Any {
	x := p.exprs()
	if set == setNodePorts || set == setNodePortsOutside {
		x.fibLocal(r0, false, true)
		x.daddr(r0)
		x.lookup(r0, setNodePortAddresses, false)
		x.l4proto(r0)
		x.dport(r0 + 1)
	} else {
		x.frontend(r0)
	}
	x.add(&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: set.String()})
	x.setMark(r0)
	return append(x.list, goTo(next))
}

// act does what the mark says. Only new connections are refused: those that
// IPVS has go on until they end.
func (p *program) act(inside bool) []nft.Rule {
	when := func(a action) *exprList {
		x := p.exprs()
		x.isNew()
		x.mark(r0)
		x.cmp(r0, expr.CmpOpEq, a)
		return x
	}
	none := p.exprs()
	none.ours(expr.CmpOpNeq)
	none.markWith(0)
	// IPVS has forgotten the connection: its time was over, or its endpoint is
	// gone for good. The kernel itself can't answer from the address.
	lost := p.exprs()
	lost.isNew()
	lost.l4proto(r0)
	lost.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{byte(model.TCP)}})
	lost.withoutFlags(r0, tcpSYN)
	rules := []nft.Rule{
		{Comment: "TCP that begins in the middle", Exprs: append(lost.list, goTo(chainRefuse))},
		{Exprs: append(when(actionReject).list, goTo(chainRefuse))},
		{Exprs: append(when(actionDrop).list, verdict(expr.VerdictDrop))},
		{Comment: "refused, but not new", Exprs: none.list},
	}
	byAddress := []action{markBase}
	if p.node.MasqueradeAll {
		byAddress = append(byAddress, markBase|markKeep)
	}
	for _, a := range byAddress {
		if inside {
			x := p.exprs()
			x.mark(r0)
			x.cmp(r0, expr.CmpOpEq, a)
			x.markWith(a | markInside)
			rules = append(rules, nft.Rule{Exprs: x.list})
		}
	}
	return rules
}

// refuse answers what a closed port answers.
func (p *program) refuse() []nft.Rule {
	unreachable := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // ICMP_PORT_UNREACH
	if p.fam == model.IPv6 {
		unreachable.Code = 4 // ICMPV6_PORT_UNREACH
	}
	is := func(protocol model.Protocol) []expr.Any {
		x := p.exprs()
		x.l4proto(r0)
		x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{byte(protocol)}})
		return x.list
	}
	clean := p.exprs()
	clean.markWith(0)
	return []nft.Rule{
		{Exprs: clean.list},
		{Exprs: append(is(model.TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
		{Exprs: append(is(model.UDP), unreachable)},
		{Exprs: append(is(model.SCTP), unreachable)},
	}
}

func (p *program) nat() []nft.Rule {
	x := p.exprs()
	x.ours(expr.CmpOpEq)
	return []nft.Rule{{Exprs: append(x.list, goTo(chainMasquerade))}}
}

// masquerade: see the table in package model.
func (p *program) masquerade() []nft.Rule {
	masq := &expr.Masq{FullyRandom: true}
	stays := p.exprs()
	stays.oifname("lo")
	rules := []nft.Rule{{Comment: "never leaves this node", Exprs: append(stays.list, verdict(expr.VerdictReturn))}}
	if p.node.MasqueradeAll {
		x := p.exprs()
		x.mark(r0)
		x.and(r0, markKeep)
		x.cmp(r0, expr.CmpOpEq, 0)
		rules = append(rules, nft.Rule{Comment: "all but externalTrafficPolicy Local", Exprs: append(x.list, masq)})
	}
	hairpin := p.exprs()
	hairpin.saddr(r0)
	hairpin.daddr(r0 + p.words())
	hairpin.lookup(r0, setHairpin, false)
	self := p.exprs()
	self.saddr(r0)
	self.lookup(r0, setAddresses, false)
	rules = append(rules, nft.Rule{Comment: "hairpin", Exprs: append(hairpin.list, masq)},
		nft.Rule{Comment: "the local route's own source", Exprs: append(self.list, masq)},
		nft.Rule{Comment: "replies return by themselves", Exprs: append(p.wasFromLocalPod(), verdict(expr.VerdictReturn))})
	if p.fam == model.IPv4 {
		x := p.exprs()
		x.add(&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 1})
		x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{127}})
		rules = append(rules, nft.Rule{Comment: "loopback", Exprs: append(x.list, masq)})
	}
	local := p.exprs()
	local.daddr(r0)
	local.lookup(r0, setLocalEndpoints, false)
	return append(rules,
		nft.Rule{Comment: "replies pass this node", Exprs: append(local.list, verdict(expr.VerdictReturn))},
		nft.Rule{Exprs: []expr.Any{masq}})
}

// unmark gives no other chain of later hooks, and no tunnel, our mark to see.
func (p *program) unmark() []nft.Rule {
	x := p.exprs()
	x.ours(expr.CmpOpEq)
	x.markWith(0)
	return []nft.Rule{{Exprs: x.list}}
}

// replies give what IPVS has translated the source that its client dialled. IPVS
// finds the connection of a reply by client and endpoint alone, and takes the latest
// where a client uses one port for two frontends of an endpoint, even one that has
// ended: that client would never see the reply. Connection tracking
// knows which of the two it is, as it has the endpoint see another port for one.
// All replies pass here, and to write what they have already changes nothing: the
// kernel's fib does not know the addresses of the table of routes for its own, and
// there is no cheaper way to tell. First of all in postrouting, so that nobody
// sees the wrong source.
func (p *program) replies() []chain {
	table := repliesOf(p.fam)
	const dnat = 1 << 5 // IPS_DST_NAT
	x := p.exprs()
	x.reply()
	x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATUS})
	x.and(r0, dnat)
	x.cmp(r0, expr.CmpOpEq, 0) // the kernel does so itself for what was translated otherwise
	entrance := []nft.Rule{{Exprs: append(x.list, goTo(chainReplies))}}
	var rules []nft.Rule
	for _, protocol := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		x := p.exprs()
		x.l4proto(r0)
		x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{byte(protocol)}})
		x.fromDialled(protocol)
		rules = append(rules, nft.Rule{Exprs: x.list})
	}
	return []chain{
		{nft.Chain{Table: table, Name: chainReplies}, rules},
		{nft.Chain{Table: table, Name: chainForwarded, Hook: &nft.Hook{Type: "filter", Num: hookPostrouting, Priority: prioFirst}}, entrance},
		{nft.Chain{Table: table, Name: chainDelivered, Hook: &nft.Hook{Type: "filter", Num: hookInput, Priority: prioSrcNAT + 1}}, entrance},
	}
}

// fromLocalPods gives the alternatives that match packets of this node's Pods
// as they come in.
func (p *program) fromLocalPods() [][]expr.Any {
	if len(p.node.PodInterfaces) == 0 {
		x := p.exprs()
		x.saddr(r0)
		x.lookup(r0, setLocalPods, false)
		return [][]expr.Any{x.list}
	}
	var ms [][]expr.Any
	for _, pattern := range p.node.PodInterfaces {
		x := p.exprs()
		x.iifname(pattern)
		ms = append(ms, x.list)
	}
	return ms
}

// wasFromLocalPod matches the same in postrouting, where IPVS has taken the
// incoming interface away: it came from inside, but not from the node itself.
func (p *program) wasFromLocalPod() []expr.Any {
	x := p.exprs()
	if len(p.node.PodInterfaces) == 0 {
		x.saddr(r0)
		x.lookup(r0, setLocalPods, false)
		return x.list
	}
	x.mark(r0)
	x.and(r0, markInside)
	x.cmp(r0, expr.CmpOpEq, markInside)
	x.fibLocal(r0, true, false)
	return x.list
}

// arpChain keeps the kernel from answering for the addresses, and from
// learning of others that do: the announcer sees the packets anyway.
func arpChain() chain {
	const arpTargetAddress = 24
	return chain{
		nft.Chain{Table: arpTable, Name: chainARP, Hook: &nft.Hook{Type: "filter", Num: hookARPInput}},
		[]nft.Rule{{Exprs: []expr.Any{
			&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: arpTargetAddress, Len: 4},
			&expr.Lookup{SourceRegister: r0, SetName: setAddresses.String()},
			verdict(expr.VerdictDrop),
		}}},
	}
}
