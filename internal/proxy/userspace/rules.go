// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"encoding/binary"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Chains of a family's table.
const (
	chainRefuse     = "refuse"
	chainDivert     = "divert"
	chainPrerouting = "prerouting"
	chainOutput     = "output"
)

// Hook numbers (enum nf_inet_hooks) and the priority: right behind destination
// NAT (-100), so that what another mode translates is never taken.
const (
	hookPrerouting = 0
	hookOutput     = 3
	priority       = -90
)

// view is one of the two sides that a frontend is seen from.
type view string

const (
	viewInside  view = "inside"
	viewOutside view = "outside"
)

// ports are where the proxy listens on a family's loopback address.
type ports struct{ tcp, udp uint16 }

// program builds the rules of one family. They depend on the node and on where
// the proxy listens.
type program struct {
	fam  model.Family
	node *model.Node
	at   map[view]ports
	// beside: IPVS has connections that the proxy must not take.
	beside bool
}

type chain struct {
	nft.Chain
	rules []nft.Rule
}

// chains are in an order in which they can be created: a chain stands before
// those that go to it.
func (p *program) chains() []chain {
	make := func(name string, hook *nft.Hook, rules ...nft.Rule) chain {
		return chain{nft.Chain{Table: tableOf(p.fam), Name: name, Hook: hook}, rules}
	}
	cs := []chain{make(chainRefuse, nil, p.refuse()...), make(chainDivert, nil, rule("", p.exprs().setMark(Mark)))}
	for _, v := range []view{viewInside, viewOutside} {
		cs = append(cs, make("capture-"+string(v), nil, p.capture(v)...), make("act-"+string(v), nil, p.act("capture-"+string(v))...),
			make(string(v), nil, p.services(v, "act-"+string(v))...))
	}
	return append(cs,
		make("act-"+chainOutput, nil, p.act(chainDivert)...),
		make(chainOutput+"-services", nil, p.services(viewInside, "act-"+chainOutput)...),
		make(chainPrerouting, &nft.Hook{Type: "filter", Num: hookPrerouting, Priority: priority}, p.prerouting()...),
		make(chainOutput, &nft.Hook{Type: "route", Num: hookOutput, Priority: priority}, p.output()...))
}

func (p *program) prerouting() []nft.Rule {
	rules := []nft.Rule{
		rule("connections that the proxy has", p.exprs().established().transparent().setMark(Mark).verdict(expr.VerdictAccept)),
		rule("errors about what the proxy has sent", p.exprs().l4proto(r0).equals(r0, p.icmp()).transparent().setMark(Mark).verdict(expr.VerdictAccept)),
		p.restricted(),
		rule("from this node itself", p.exprs().iifname("lo").mark(Mark).goTo("capture-"+string(viewInside))),
	}
	if len(p.node.PodInterfaces) == 0 {
		rules = append(rules, rule("", p.exprs().saddr(r0).lookup(setLocalPods, false).goTo(string(viewInside))))
	}
	for _, pattern := range p.node.PodInterfaces {
		rules = append(rules, rule("", p.exprs().iifname(pattern).goTo(string(viewInside))))
	}
	return append(rules, rule("", p.exprs().goTo(string(viewOutside))))
}

func (p *program) output() []nft.Rule {
	return []nft.Rule{
		rule("passed on to another node", p.exprs().sourceNotLocal().verdict(expr.VerdictAccept)),
		// As from outside: what the proxy has goes on, whatever the source ranges are now.
		rule("connections that the proxy has", p.exprs().established().goTo(chainOutput+"-services")),
		p.restricted(),
		rule("", p.exprs().goTo(chainOutput+"-services")),
	}
}

// restricted keeps out who is not in the source ranges.
func (p *program) restricted() nft.Rule {
	return rule("loadBalancerSourceRanges", p.exprs().frontend(r0).lookup(setRestricted, false).
		frontend(r0).saddr(r0+p.words()+2).lookup(setSourceRanges, true).verdict(expr.VerdictDrop))
}

// services looks the packet up; without an element nothing happens to it.
func (p *program) services(v view, act string) []nft.Rule {
	var rules []nft.Rule
	find := func(outside, inside setID, match func() *exprList) {
		if v == viewOutside {
			rules = append(rules, rule("externalTrafficPolicy Local", match().markFrom(outside).goTo(act)))
		}
		rules = append(rules, rule("", match().markFrom(inside).goTo(act)))
	}
	find(setServicesOutside, setServices, func() *exprList { return p.exprs().frontend(r0) })
	rules = append(rules, p.noSuchPort(setClusterIPs))
	if v == viewOutside {
		rules = append(rules, p.noSuchPort(setLoadBalancerIPs))
	}
	find(setNodePortsOutside, setNodePorts, func() *exprList {
		return p.exprs().fibLocal(true).daddr(r0).lookup(setNodePortAddresses, false).l4proto(r0).dport(r0 + 1)
	})
	return rules
}

// noSuchPort refuses what no Service has at its addresses.
func (p *program) noSuchPort(addresses setID) nft.Rule {
	return rule("no such port", p.exprs().daddr(r0).lookup(addresses, false).fibLocal(false).goTo(chainRefuse))
}

// act does what the mark says. Only the first packet of a TCP connection is
// refused: what the proxy has goes on until it ends.
func (p *program) act(capture string) []nft.Rule {
	notNew := rule("not new", p.exprs().established().goTo(capture))
	if p.beside && capture != chainDivert {
		notNew = rule("left to IPVS", p.exprs().established().setMark(0).verdict(expr.VerdictAccept))
	}
	return []nft.Rule{
		notNew,
		rule("", p.exprs().mark(actionReject).setMark(0).goTo(chainRefuse)),
		rule("", p.exprs().mark(actionDrop).verdict(expr.VerdictDrop)),
		rule("", p.exprs().goTo(capture)),
	}
}

// capture hands the packet to the proxy's socket. While no proxy listens it is
// dropped: the client asks again, and finds the next agent.
func (p *program) capture(v view) []nft.Rule {
	to := func(proto model.Protocol, port uint16) nft.Rule {
		return rule("", p.exprs().setMark(Mark).l4proto(r0).equals(r0, byte(proto)).tproxy(port).verdict(expr.VerdictAccept))
	}
	return []nft.Rule{
		to(model.TCP, p.at[v].tcp), to(model.UDP, p.at[v].udp),
		rule("no proxy listens", p.exprs().verdict(expr.VerdictDrop)),
	}
}

// refuse answers what a closed port answers.
func (p *program) refuse() []nft.Rule {
	unreachable := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // ICMP_PORT_UNREACH
	if p.fam == model.IPv6 {
		unreachable.Code = 4 // ICMPV6_PORT_UNREACH
	}
	is := func(proto model.Protocol) *exprList { return p.exprs().l4proto(r0).equals(r0, byte(proto)) }
	return []nft.Rule{
		rule("", is(model.TCP).add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})),
		rule("", is(model.UDP).add(unreachable)),
		rule("", is(model.SCTP).add(unreachable)),
	}
}

func rule(comment string, x *exprList) nft.Rule { return nft.Rule{Comment: comment, Exprs: x.list} }

// r0 is the first of the sixteen 4-byte registers (NFT_REG32_00).
const r0 = unix.NFT_REG32_00

// exprList builds the expressions of one rule.
type exprList struct {
	p    *program
	list []expr.Any
}

func (p *program) exprs() *exprList { return &exprList{p: p} }

// words is the number of registers that an address takes.
func (p *program) words() uint32 {
	if p.fam == model.IPv6 {
		return 4
	}
	return 1
}

func (x *exprList) add(es ...expr.Any) *exprList {
	x.list = append(x.list, es...)
	return x
}

func (x *exprList) network(reg, v4offset, v6offset uint32) *exprList {
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: v4offset, Len: 4}
	if x.p.fam == model.IPv6 {
		load.Offset, load.Len = v6offset, 16
	}
	return x.add(load)
}

func (x *exprList) saddr(reg uint32) *exprList { return x.network(reg, 12, 8) }
func (x *exprList) daddr(reg uint32) *exprList { return x.network(reg, 16, 24) }

func (x *exprList) l4proto(reg uint32) *exprList {
	return x.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg})
}

func (x *exprList) dport(reg uint32) *exprList {
	return x.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
}

// frontend loads what the packet dials: ip daddr . meta l4proto . th dport.
func (x *exprList) frontend(reg uint32) *exprList {
	return x.daddr(reg).l4proto(reg + x.p.words()).dport(reg + x.p.words() + 1)
}

func (x *exprList) lookup(set setID, invert bool) *exprList {
	return x.add(&expr.Lookup{SourceRegister: r0, SetName: set.String(), Invert: invert})
}

// markFrom sets the packet's mark to what a services map says; without an
// element the rule ends here.
func (x *exprList) markFrom(set setID) *exprList {
	return x.add(&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: set.String()},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: r0, SourceRegister: true})
}

func (x *exprList) setMark(a action) *exprList {
	return x.add(&expr.Immediate{Register: r0, Data: word(a)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: r0, SourceRegister: true})
}

func (x *exprList) mark(a action) *exprList {
	return x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: r0}).equals(r0, word(a)...)
}

func (x *exprList) equals(reg uint32, data ...byte) *exprList {
	return x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data})
}

// established matches TCP segments other than the first of a connection.
func (x *exprList) established() *exprList {
	const flagsOffset, fin, syn, rst, ack = 13, 1, 2, 4, 16
	return x.l4proto(r0).equals(r0, byte(model.TCP)).add(
		&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: r0, DestRegister: r0, Len: 1, Mask: []byte{fin | syn | rst | ack}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: r0, Data: []byte{syn}})
}

// sourceNotLocal matches packets whose source is no address of this node.
func (x *exprList) sourceNotLocal() *exprList {
	return x.add(
		&expr.Fib{Register: r0, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: r0, Data: word(unix.RTN_LOCAL)})
}

// transparent matches packets of a connection that a transparent socket has.
func (x *exprList) transparent() *exprList {
	return x.add(&expr.Socket{Key: expr.SocketKeyTransparent, Register: r0}).equals(r0, 1)
}

// icmp is the protocol number of a family's errors. The kernel finds the socket that
// they are about by the packet that they quote.
func (p *program) icmp() byte {
	if p.fam == model.IPv6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

// tproxy gives the packet to the socket that listens at the loopback address.
func (x *exprList) tproxy(port uint16) *exprList {
	family, addr := byte(unix.NFPROTO_IPV4), loopback(x.p.fam)
	if x.p.fam == model.IPv6 {
		family = unix.NFPROTO_IPV6
	}
	to := r0 + x.p.words()
	return x.add(
		&expr.Immediate{Register: r0, Data: addr.AsSlice()},
		&expr.Immediate{Register: to, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.TProxy{Family: family, TableFamily: family, RegAddr: r0, RegPort: to})
}

// fibLocal matches packets whose destination is, or is not, an address of this
// node.
func (x *exprList) fibLocal(local bool) *exprList {
	op := expr.CmpOpEq
	if !local {
		op = expr.CmpOpNeq
	}
	return x.add(&expr.Fib{Register: r0, FlagDADDR: true, ResultADDRTYPE: true}, &expr.Cmp{Op: op, Register: r0, Data: word(unix.RTN_LOCAL)})
}

// iifname compares the prefix alone if the pattern ends in '*'.
func (x *exprList) iifname(pattern string) *exprList {
	name, isPrefix := strings.CutSuffix(pattern, "*")
	data := []byte(name)
	if !isPrefix {
		data = make([]byte, unix.IFNAMSIZ)
		copy(data, name)
	}
	return x.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: r0}).equals(r0, data...)
}

func (x *exprList) verdict(k expr.VerdictKind) *exprList { return x.add(&expr.Verdict{Kind: k}) }

func (x *exprList) goTo(chain string) *exprList {
	return x.add(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}
