// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
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
	chainUnmark     = "unmark"
	chainARP        = "input"
)

// Hook numbers and priorities (enum nf_inet_hooks, enum nf_ip_hook_priorities).
// Packets are marked behind connection tracking (-200) and before IPVS (-98 on
// the way out, 98 and 99 on the way in).
const (
	hookPrerouting  = 0
	hookOutput      = 3
	hookPostrouting = 4
	hookARPInput    = 0

	prioMangle = -150
	prioSrcNAT = 100
	prioLast   = 225
)

// program builds the rules of one family; they depend on the node only.
type program struct {
	fam  model.Family
	node *model.Node
}

type chain struct {
	nfnl.Chain
	rules []nfnl.Rule
}

// chains are in an order in which they can be created: a chain stands before
// those that go to it.
func (p *program) chains() []chain {
	make := func(name string, hook *nfnl.Hook, rules []nfnl.Rule) chain {
		return chain{nfnl.Chain{Table: tableOf(p.fam), Name: name, Hook: hook}, rules}
	}
	return []chain{
		make(chainRefuse, nil, p.refuse()),
		make(chainAct, nil, p.act(false)),
		make(chainActInside, nil, p.act(true)),
		make(chainOther, nil, p.other()),
		make(chainInside, nil, p.inside()),
		make(chainOutside, nil, p.outside()),
		make(chainMasquerade, nil, p.masquerade()),
		make(chainPrerouting, &nfnl.Hook{Type: "filter", Num: hookPrerouting, Priority: prioMangle}, p.prerouting()),
		make(chainOutput, &nfnl.Hook{Type: "filter", Num: hookOutput, Priority: prioMangle}, p.output()),
		make(chainNAT, &nfnl.Hook{Type: "nat", Num: hookPostrouting, Priority: prioSrcNAT}, p.nat()),
		make(chainUnmark, &nfnl.Hook{Type: "filter", Num: hookPostrouting, Priority: prioLast}, p.unmark()),
	}
}

func (p *program) prerouting() []nfnl.Rule {
	rules := p.entrance()
	for _, m := range p.fromLocalPods() {
		rules = append(rules, nfnl.Rule{Exprs: append(m, goTo(chainInside))})
	}
	return append(rules, nfnl.Rule{Exprs: []expr.Any{goTo(chainOutside)}})
}

func (p *program) output() []nfnl.Rule {
	return append(p.entrance(), nfnl.Rule{Exprs: []expr.Any{goTo(chainInside)}})
}

// entrance lets replies pass and keeps out who is not in the source ranges.
func (p *program) entrance() []nfnl.Rule {
	x := p.exprs()
	x.isNew()
	x.frontend(r0)
	x.lookup(r0, setRestricted, false)
	x.frontend(r0)
	x.saddr(r0 + p.words() + 2)
	x.lookup(r0, setSourceRanges, true)
	return []nfnl.Rule{
		{Exprs: append(p.exprs().reply().list, verdict(expr.VerdictAccept))},
		{Comment: "loadBalancerSourceRanges", Exprs: append(x.list, verdict(expr.VerdictDrop))},
	}
}

func (p *program) outside() []nfnl.Rule {
	return []nfnl.Rule{
		{Comment: "externalTrafficPolicy Local", Exprs: p.marked(setServicesOutside, chainAct)},
		{Exprs: p.marked(setServices, chainAct)},
		{Exprs: append(p.exprs().onAddress().list, goTo(chainOther))},
		{Exprs: p.marked(setNodePortsOutside, chainAct)},
		{Exprs: p.marked(setNodePorts, chainAct)},
	}
}

func (p *program) inside() []nfnl.Rule {
	return []nfnl.Rule{
		{Exprs: p.marked(setServices, chainActInside)},
		{Exprs: append(p.exprs().onAddress().list, goTo(chainOther))},
		{Exprs: p.marked(setNodePorts, chainActInside)},
	}
}

// marked sets the packet's mark to what a services map says and goes on in
// next; without an element nothing happens.
func (p *program) marked(set setID, next string) []expr.Any {
	x := p.exprs()
	if set == setNodePorts || set == setNodePortsOutside {
		x.fibType(r0, expr.Expr(x.fibDestination), expr.CmpOpEq)
		x.daddr(r0)
		x.lookup(r0, setNodePortAddresses, false)
		x.port(r0)
	} else {
		x.frontend(r0)
	}
	x.add(&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: set.String()})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: r0, SourceRegister: true})
	return append(x.list, goTo(next))
}
