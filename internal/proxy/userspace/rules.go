// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"net/netip"

	gexpr "github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Chains of a family's table.
const (
	chainRefuse     = "refuse"
	chainDivert     = "divert"
	chainPrerouting = "prerouting"
	chainOutput     = "output"
	chainMasquerade = "masquerading"
	chainUnmark     = "unmark"
)

// priority is right behind destination NAT, so that what another mode translates is
// never taken.
const priority = expr.PriorityDstNAT + 10

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

// chains are in an order in which they can be created: a chain stands before
// those that go to it.
func (p *program) chains() []nft.Chain {
	make := func(name string, hook *nft.Hook, rules ...nft.Rule) nft.Chain {
		return nft.Chain{Table: tableOf(p.fam), Name: name, Hook: hook, Rules: rules}
	}
	cs := []nft.Chain{make(chainRefuse, nil, p.refuse()...), make(chainDivert, nil, p.divert())}
	for _, v := range []view{viewInside, viewOutside} {
		cs = append(cs, make("capture-"+string(v), nil, p.capture(v)...), make("act-"+string(v), nil, p.act("capture-"+string(v))...),
			make(string(v), nil, p.services(v, "act-"+string(v))...))
	}
	return append(cs,
		make("act-"+chainOutput, nil, p.act(chainDivert)...),
		make(chainOutput+"-services", nil, p.services(viewInside, "act-"+chainOutput)...),
		make(chainPrerouting, &nft.Hook{Type: "filter", Num: expr.HookPrerouting, Priority: priority}, p.prerouting()...),
		make(chainOutput, &nft.Hook{Type: "route", Num: expr.HookOutput, Priority: priority}, p.output()...))
}

// divert leads what this node sends back to prerouting.
func (p *program) divert() nft.Rule { return p.exprs().MarkWith(mark).Rule("") }

// yielded is the chain divert while another mode takes over (Yield).
func (p *program) yielded() nft.Chain {
	return nft.Chain{Table: tableOf(p.fam), Name: chainDivert, Rules: []nft.Rule{
		p.exprs().Protocol(uint8(model.TCP)).Drop().Rule("another mode takes over"),
		p.divert(),
	}}
}

func (p *program) prerouting() []nft.Rule {
	rules := []nft.Rule{
		p.established().Transparent().MarkWith(mark).Accept().Rule("connections that the proxy has"),
		p.exprs().Protocol(p.icmp()).Transparent().MarkWith(mark).Accept().Rule("errors about what the proxy has sent"),
	}
	for _, x := range p.errors() {
		rules = append(rules, x.MarkWith(mark).Accept().Rule("errors about answers by UDP"))
	}
	rules = append(rules,
		p.restricted(),
		p.exprs().IIFName(gexpr.CmpOpEq, "lo").Marked(mark).Goto("capture-"+string(viewInside)).Rule("from this node itself"),
	)
	if len(p.node.PodInterfaces) == 0 {
		rules = append(rules, p.exprs().Saddr(r0).Lookup(r0, setLocalPods).Goto(string(viewInside)).Rule(""))
	}
	for _, pattern := range p.node.PodInterfaces {
		rules = append(rules, p.exprs().IIFName(gexpr.CmpOpEq, pattern).Goto(string(viewInside)).Rule(""))
	}
	return append(rules, p.exprs().Goto(string(viewOutside)).Rule(""))
}

func (p *program) output() []nft.Rule {
	var rules []nft.Rule
	if p.beside {
		// What a client sends that IPVS knows, it takes in spite of the proxy's mark. The kernel
		// routes what is translated again on its way out, and the mark would lead it to lo.
		rules = append(rules, p.exprs().Marked(mark).LocalSource(false).MarkWith(markPassed).Accept().Rule("IPVS has it"))
	}
	return append(rules,
		p.exprs().LocalSource(false).Accept().Rule("passed on to another node"),
		// As from outside: what the proxy has goes on, whatever the source ranges are now.
		p.established().Goto(chainOutput+"-services").Rule("connections that the proxy has"),
		p.restricted(),
		p.exprs().Goto(chainOutput+"-services").Rule(""),
	)
}

// restricted keeps out clients that are not in the source ranges.
func (p *program) restricted() nft.Rule {
	return p.exprs().Frontend(r0).Lookup(r0, setRestricted).
		Frontend(r0).Saddr(r0+expr.Words(p.family())+2).LookupNot(r0, setSourceRanges).Drop().Rule("loadBalancerSourceRanges")
}

// services looks the packet up; without an element nothing happens to it.
func (p *program) services(v view, act string) []nft.Rule {
	var rules []nft.Rule
	find := func(outside, inside setID, match func() *expr.List) {
		if v == viewOutside {
			rules = append(rules, match().Map(r0, r0, outside).SetMark(r0).Goto(act).Rule("externalTrafficPolicy Local"))
		}
		rules = append(rules, match().Map(r0, r0, inside).SetMark(r0).Goto(act).Rule(""))
	}
	find(setServicesOutside, setServices, func() *expr.List { return p.exprs().Frontend(r0) })
	rules = append(rules, p.noSuchPort(setClusterIPs))
	if v == viewOutside {
		rules = append(rules, p.noSuchPort(setLoadBalancerIPs))
	}
	find(setNodePortsOutside, setNodePorts, func() *expr.List {
		return p.exprs().LocalDestination(true).Daddr(r0).Lookup(r0, setNodePortAddresses).NodePort(r0)
	})
	return rules
}

// noSuchPort refuses what no Service has at its addresses.
func (p *program) noSuchPort(addresses setID) nft.Rule {
	return p.exprs().Daddr(r0).Lookup(r0, addresses).LocalDestination(false).Goto(chainRefuse).Rule("no such port")
}

// act does what the mark says. Only the first packet of a TCP connection is
// refused: what the proxy has goes on until it ends.
func (p *program) act(capture string) []nft.Rule {
	notNew := p.established().Goto(capture).Rule("not new")
	if p.beside && capture != chainDivert {
		notNew = p.established().MarkWith(0).Accept().Rule("left to IPVS")
	}
	return []nft.Rule{
		notNew,
		p.exprs().Marked(uint32(actionReject)).MarkWith(0).Goto(chainRefuse).Rule(""),
		p.exprs().Marked(uint32(actionDrop)).Drop().Rule(""),
		p.exprs().Goto(capture).Rule(""),
	}
}

// capture hands the packet to the proxy's socket. While no proxy listens it is
// dropped: the client asks again, and finds the next agent.
func (p *program) capture(v view) []nft.Rule {
	to := func(proto model.Protocol, port uint16) nft.Rule {
		return p.exprs().MarkWith(mark).Protocol(uint8(proto)).TProxy(netip.AddrPortFrom(loopback(p.fam), port)).Accept().Rule("")
	}
	return []nft.Rule{
		to(model.TCP, p.at[v].tcp), to(model.UDP, p.at[v].udp),
		p.exprs().Drop().Rule("no proxy listens"),
	}
}

// refuse answers what a closed port answers.
func (p *program) refuse() []nft.Rule {
	is := func(proto model.Protocol) *expr.List { return p.exprs().Protocol(uint8(proto)) }
	return []nft.Rule{is(model.TCP).RejectTCP().Rule(""), is(model.UDP).RejectPort().Rule(""), is(model.SCTP).RejectPort().Rule("")}
}

// r0 is the first of the sixteen 4-byte registers.
const r0 = expr.R0

const mark = uint32(Mark)

// markPassed is that of what IPVS has translated though the proxy had captured it.
const markPassed = mark + 1

func (p *program) family() nft.Family { return tableOf(p.fam).Family }

func (p *program) exprs() *expr.List { return expr.For(p.family()) }

// established matches TCP segments other than the first of a connection.
func (p *program) established() *expr.List {
	return p.exprs().Protocol(uint8(model.TCP)).TCPFlags(expr.FIN|expr.SYN|expr.RST|expr.ACK, gexpr.CmpOpNeq, expr.SYN)
}

// errors matches ICMP errors that quote a packet from a frontend. The kernel finds no
// socket for those about answers by UDP: the one that has sent them is raw, and takes
// note of the path's MTU once the error is delivered to this node.
func (p *program) errors() []*expr.List {
	const quoted = 8 // behind the ICMP header (RFC 792, RFC 4443 section 3)
	header := func() *expr.List { return p.exprs().Protocol(p.icmp()).Transport(r0, 0, 1) }
	words := expr.Words(p.family())
	// from looks up the address, protocol and port at offsets of the quoted packet.
	from := func(x *expr.List, addr, proto, port uint32) *expr.List {
		return x.Transport(r0, quoted+addr, 4*words).Transport(r0+words, quoted+proto, 1).Transport(r0+words+1, quoted+port, 2).
			Map(r0, r0, setServices)
	}
	if p.fam == model.IPv6 {
		const unreachable, parameterProblem = 1, 4 // between them too big and time exceeded
		const addr, next, size, fragmentNext, fragmentSize = 8, 6, 40, 40, 8
		errors := func() *expr.List {
			return header().Compare(r0, gexpr.CmpOpGte, unreachable).Compare(r0, gexpr.CmpOpLte, parameterProblem)
		}
		return []*expr.List{
			from(errors(), addr, next, size),
			// A large answer leaves in fragments, of which the first has the ports.
			from(errors().Transport(r0, quoted+next, 1).Equal(r0, unix.IPPROTO_FRAGMENT), addr, fragmentNext, size+fragmentSize),
		}
	}
	var xs []*expr.List
	for _, icmpType := range []byte{3, 11, 12} { // unreachable, with "fragmentation needed"; time exceeded; parameter problem
		const addr, proto, size = 12, 9, 20
		xs = append(xs, from(header().Equal(r0, icmpType), addr, proto, size))
	}
	return xs
}

// icmp is the protocol number of a family's errors. The kernel finds the socket that
// they are about by the packet that they quote.
func (p *program) icmp() byte {
	if p.fam == model.IPv6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}
