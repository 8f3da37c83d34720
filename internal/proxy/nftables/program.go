// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
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
	nfnl.Chain
	rules []nfnl.Rule
}

// program is the constant part of a table: everything but elements, and the
// chains of the classes in use.
type program struct {
	table nfnl.Table
	fam   model.Family
	node  *model.Node
}

// chains gives the constant chains in an order in which they can be created:
// a chain stands before those that go to it.
func (p *program) chains() []chain {
	cs := []chain{
		p.chain(chainReject, nil, p.rejectRules()),
		p.chain(chainMasquerade, nil, p.masqueradeRules()),
		p.chain(chainInside, nil, p.insideRules()),
		p.chain(chainOutside, nil, p.outsideRules()),
		p.chain(chainPrerouting, &nfnl.Hook{Type: "nat", Num: hookPrerouting, Priority: prioDstNAT}, p.preroutingRules()),
		p.chain(chainOutput, &nfnl.Hook{Type: "nat", Num: hookOutput, Priority: prioDstNAT}, p.outputRules()),
		p.chain(chainPostrouting, &nfnl.Hook{Type: "nat", Num: hookPostrouting, Priority: prioSrcNAT}, p.postroutingRules()),
		p.chain(chainForward, &nfnl.Hook{Type: "filter", Num: hookForward, Priority: prioFilter}, p.forwardRules()),
	}
	if p.fam == model.IPv4 && p.node.LocalhostNodePorts {
		cs = append(cs, p.chain(chainMartian, &nfnl.Hook{Type: "filter", Num: hookPrerouting, Priority: prioRaw}, p.martianRules()))
	}
	return cs
}

func (p *program) chain(name string, hook *nfnl.Hook, rules []nfnl.Rule) chain {
	return chain{nfnl.Chain{Table: p.table, Name: name, Hook: hook}, rules}
}

// preroutingRules tell apart who sends: the Pods of this node, or others.
func (p *program) preroutingRules() []nfnl.Rule {
	rules := []nfnl.Rule{p.restrictRule()}
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nfnl.Rule{Exprs: append(m, goTo(chainInside))})
	}
	return append(rules, nfnl.Rule{Exprs: []expr.Any{goTo(chainOutside)}})
}

// outputRules: what the node itself sends comes from inside.
func (p *program) outputRules() []nfnl.Rule {
	return []nfnl.Rule{p.restrictRule(), {Exprs: []expr.Any{goTo(chainInside)}}}
}

// restrictRule drops who is not in the source ranges.
func (p *program) restrictRule() nfnl.Rule {
	x := p.exprs().frontend(r0)
	x.lookup(r0, setRestricted)
	// The key is loaded again, so that the rule reads as it is meant.
	x.frontend(r0)
	x.saddr(r0 + p.frontendWords())
	x.lookupNot(r0, setSourceRanges)
	return nfnl.Rule{Comment: "loadBalancerSourceRanges", Exprs: append(x.list, verdict(expr.VerdictDrop))}
}

func (p *program) outsideRules() []nfnl.Rule {
	return []nfnl.Rule{
		{Comment: "externalTrafficPolicy Local", Exprs: p.dispatch(use{outside: true})},
		{Exprs: p.dispatch(use{outside: true, nodePort: true})},
		{Exprs: []expr.Any{goTo(chainInside)}},
	}
}

func (p *program) insideRules() []nfnl.Rule {
	noPort := p.exprs()
	noPort.daddr(r0)
	noPort.lookup(r0, setClusterIPs)
	lb := p.exprs()
	lb.daddr(r0)
	lb.lookup(r0, setLoadBalancerIPs)
	lb.fibLocal(r0, false)
	return []nfnl.Rule{
		{Exprs: p.dispatch(use{})},
		{Comment: "no such port on a ClusterIP", Exprs: append(noPort.list, goTo(chainReject))},
		{Comment: "no such port on a load balancer IP", Exprs: append(lb.list, goTo(chainReject))},
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
func (p *program) rejectRules() []nfnl.Rule {
	unreachable := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // ICMP_PORT_UNREACH
	if p.fam == model.IPv6 {
		unreachable.Code = 4 // ICMPV6_PORT_UNREACH
	}
	x := p.exprs()
	x.l4proto(r0)
	x.cmp(r0, expr.CmpOpEq, []byte{byte(model.TCP)})
	return []nfnl.Rule{
		{Exprs: append(x.list, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})},
		{Exprs: []expr.Any{unreachable}},
	}
}

// postroutingRules single out connections whose destination was translated.
func (p *program) postroutingRules() []nfnl.Rule {
	const dnat = 1 << 5 // IPS_DST_NAT
	x := p.exprs()
	x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATUS})
	x.and(r0, dnat)
	x.cmp(r0, expr.CmpOpNeq, make([]byte, 4))
	return []nfnl.Rule{{Exprs: append(x.list, goTo(chainMasquerade))}}
}

// masqueradeRules: see the table in package model.
func (p *program) masqueradeRules() []nfnl.Rule {
	masq := &expr.Masq{FullyRandom: true}
	ours, oursNodePort := p.translatedHere()
	stays := p.exprs()
	stays.oifname(r0, expr.CmpOpEq, "lo")
	rules := []nfnl.Rule{{Comment: "never leaves this node", Exprs: append(stays.list, verdict(expr.VerdictReturn))}}
	if p.node.MasqueradeAll {
		return append(rules, nfnl.Rule{Exprs: append(ours, masq)}, nfnl.Rule{Exprs: append(oursNodePort, masq)})
	}
	hairpin := p.exprs()
	hairpin.saddr(r0)
	hairpin.daddr(r0 + p.addrWords())
	hairpin.lookup(r0, setHairpin)
	rules = append(rules, nfnl.Rule{Comment: "hairpin", Exprs: append(hairpin.list, masq)})
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nfnl.Rule{Comment: "replies return by themselves", Exprs: append(m, verdict(expr.VerdictReturn))})
	}
	if p.fam == model.IPv4 {
		loopback := p.exprs()
		loopback.saddrMasked(r0, netip.MustParsePrefix("127.0.0.0/8"))
		rules = append(rules, nfnl.Rule{Exprs: append(loopback.list, masq)})
	}
	local := p.exprs()
	local.daddr(r0)
	local.lookup(r0, setLocalEndpoints)
	return append(rules,
		nfnl.Rule{Comment: "replies pass this node", Exprs: append(local.list, verdict(expr.VerdictReturn))},
		nfnl.Rule{Exprs: append(ours, masq)},
		nfnl.Rule{Exprs: append(oursNodePort, masq)})
}

// translatedHere matches connections that a rule of this table translated: by
// what the client dialled.
func (p *program) translatedHere() (frontend, nodePort []expr.Any) {
	dialled := func(u use) []expr.Any {
		x := p.exprs()
		reg := uint32(r0)
		if !u.nodePort {
			x.add(p.originalDestination(reg))
			reg += p.addrWords()
		}
		x.l4proto(reg)
		x.add(&nfnl.CtOriginal{Ct: &expr.Ct{Register: reg + 1, Key: expr.CtKeyPROTODST}})
		x.mapTo(r0, r0, u.of(setServices))
		x.cmp(x.throughMark(r0, reg+2), expr.CmpOpNeq, make([]byte, 4))
		return x.list
	}
	return dialled(use{}), dialled(use{nodePort: true})
}

func (p *program) originalDestination(reg uint32) expr.Any {
	const dstIP, dstIP6 = 20, 22 // NFT_CT_DST_IP, NFT_CT_DST_IP6: nft lists NFT_CT_DST wrongly
	if p.fam == model.IPv6 {
		return &nfnl.CtOriginal{Ct: &expr.Ct{Register: reg, Key: dstIP6}}
	}
	return &nfnl.CtOriginal{Ct: &expr.Ct{Register: reg, Key: dstIP}}
}

// forwardRules keep packets that connection tracking does not recognise from
// reaching a Pod or its client untranslated: the receiver would answer with a
// reset and kill the connection (kubernetes#74839).
func (p *program) forwardRules() []nfnl.Rule {
	invalid := func() *exprList {
		x := p.exprs()
		x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATE})
		x.and(r0, expr.CtStateBitINVALID)
		x.cmp(r0, expr.CmpOpNeq, make([]byte, 4))
		return x
	}
	var rules []nfnl.Rule
	for _, m := range slices.Concat(p.fromLocalPods(), p.toLocalPods()) {
		rules = append(rules, nfnl.Rule{Exprs: append(append(invalid().list, m...), verdict(expr.VerdictDrop))})
	}
	return rules
}

// martianRules undo what route_localnet opens: the loopback range must not be
// reachable from outside (CVE-2020-8558).
func (p *program) martianRules() []nfnl.Rule {
	x := p.exprs()
	x.iifname(r0, expr.CmpOpNeq, "lo")
	x.daddrMasked(r0, netip.MustParsePrefix("127.0.0.0/8"))
	return []nfnl.Rule{{Exprs: append(x.list, verdict(expr.VerdictDrop))}}
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

// r0 is the first of the sixteen 4-byte registers (NFT_REG32_00).
const r0 = unix.NFT_REG32_00

func (p *program) addrWords() uint32 {
	if p.fam == model.IPv6 {
		return 4
	}
	return 1
}

func (p *program) frontendWords() uint32 { return p.addrWords() + 2 }

// exprList builds the expressions of one rule.
type exprList struct {
	p    *program
	list []expr.Any
}

func (p *program) exprs() *exprList { return &exprList{p: p} }

func (x *exprList) add(e expr.Any) { x.list = append(x.list, e) }

func (x *exprList) payload(reg uint32, base expr.PayloadBase, offset, length uint32) {
	x.add(&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length})
}

func (x *exprList) saddr(reg uint32) {
	if x.p.fam == model.IPv6 {
		x.payload(reg, expr.PayloadBaseNetworkHeader, 8, 16)
		return
	}
	x.payload(reg, expr.PayloadBaseNetworkHeader, 12, 4)
}

func (x *exprList) daddr(reg uint32) {
	if x.p.fam == model.IPv6 {
		x.payload(reg, expr.PayloadBaseNetworkHeader, 24, 16)
		return
	}
	x.payload(reg, expr.PayloadBaseNetworkHeader, 16, 4)
}

// saddrMasked and daddrMasked match an IPv4 range.
func (x *exprList) saddrMasked(reg uint32, p netip.Prefix) { x.saddr(reg); x.masked(reg, p) }
func (x *exprList) daddrMasked(reg uint32, p netip.Prefix) { x.daddr(reg); x.masked(reg, p) }

func (x *exprList) masked(reg uint32, p netip.Prefix) {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)})
	x.cmp(reg, expr.CmpOpEq, p.Addr().AsSlice())
}

func (x *exprList) l4proto(reg uint32) { x.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}) }

// frontend loads what the packet dials: ip daddr . meta l4proto . th dport.
func (x *exprList) frontend(reg uint32) *exprList {
	x.daddr(reg)
	x.l4proto(reg + x.p.addrWords())
	x.payload(reg+x.p.addrWords()+1, expr.PayloadBaseTransportHeader, 2, 2)
	return x
}

// nodePort loads the key of NodePorts: meta l4proto . th dport.
func (x *exprList) nodePort(reg uint32) {
	x.l4proto(reg)
	x.payload(reg+1, expr.PayloadBaseTransportHeader, 2, 2)
}

func (x *exprList) lookup(reg uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, SetName: set.String()})
}

func (x *exprList) lookupNot(reg uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, SetName: set.String(), Invert: true})
}

func (x *exprList) mapTo(reg, dest uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, DestRegister: dest, IsDestRegSet: true, SetName: set.String()})
}

// throughMark makes nft know the value in reg as "meta mark". It uses two
// registers from free on and returns the one that then holds the value. The
// packet's mark is unchanged afterwards.
func (x *exprList) throughMark(reg, free uint32) uint32 {
	return x.throughMarkTo(reg, free, free+1)
}

// throughMarkTo is throughMark with saved as scratch and to as the result.
func (x *exprList) throughMarkTo(reg, saved, to uint32) uint32 {
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: saved})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: to})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: saved, SourceRegister: true})
	return to
}

func (x *exprList) cmp(reg uint32, op expr.CmpOp, data []byte) {
	x.add(&expr.Cmp{Op: op, Register: reg, Data: data})
}

// and keeps some bits of a host-endian word.
func (x *exprList) and(reg, bits uint32) {
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
		Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)})
}

// fibLocal matches packets to (or not to) an address of this node.
func (x *exprList) fibLocal(reg uint32, local bool) {
	op := expr.CmpOpEq
	if !local {
		op = expr.CmpOpNeq
	}
	x.add(&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true})
	x.cmp(reg, op, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL))
}

func (x *exprList) iifname(reg uint32, op expr.CmpOp, pattern string) {
	x.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg})
	x.cmp(reg, op, ifname(pattern))
}

func (x *exprList) oifname(reg uint32, op expr.CmpOp, pattern string) {
	x.add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg})
	x.cmp(reg, op, ifname(pattern))
}

// ifname is what to compare: the prefix alone, or the whole padded name.
func ifname(pattern string) []byte {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return []byte(prefix)
	}
	return append([]byte(pattern), make([]byte, unix.IFNAMSIZ-len(pattern))...)
}

func verdict(k expr.VerdictKind) *expr.Verdict { return &expr.Verdict{Kind: k} }

func goTo(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }
