// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const prefix = "CAUSEWAY-"

// Chains that are always there.
const (
	chainPrerouting  = prefix + "PREROUTING"
	chainOutput      = prefix + "OUTPUT"
	chainPostrouting = prefix + "POSTROUTING"
	chainServices    = prefix + "SERVICES"
	chainOutside     = prefix + "OUTSIDE"
	chainClosed      = prefix + "CLOSED"
	chainNodePorts   = prefix + "NODEPORTS"
	chainNodePortsO  = prefix + "NODEPORTS-OUTSIDE"
	chainPorts       = prefix + "PORTS"
	chainPortsO      = prefix + "PORTS-OUTSIDE"
	chainReject      = prefix + "REJECT"
	chainDrop        = prefix + "DROP"
	chainMasquerade  = prefix + "MASQUERADE"
	chainHairpin     = prefix + "HAIRPIN"
	chainLocal       = prefix + "LOCAL"

	chainFilter  = prefix + "FILTER"
	chainInput   = prefix + "INPUT"
	chainForward = prefix + "FORWARD"
)

// table is an iptables table.
type table string

const (
	nat    table = "nat"
	filter table = "filter"
)

// id names a rule: its place is by chain and key.
type id struct {
	table table
	chain string
	key   string
}

// rules are elements: the text behind "-A CHAIN " by id.
type rules map[id]string

func (r rules) add(t table, chain, key, text string) { r[id{t, chain, key}] = text }

// name gives a chain a name of its own from what it stands for.
func name(kind string, parts ...any) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(parts...)))
	return prefix + kind + "-" + base32.StdEncoding.EncodeToString(sum[:10])
}

// marks are the three bits of the packet mark.
type marks struct{ ours, pod, refuse uint32 }

func newMarks(first uint32) marks { return marks{first, first << 1, first << 2} }

// keep is what connections have besides that keep the client's address although
// all others are masqueraded.
func (m marks) keep() uint32 { return m.refuse }

func (m marks) all() uint32 { return m.ours | m.pod | m.refuse }

func set(value, mask uint32) string { return fmt.Sprintf("-j MARK --set-xmark 0x%x/0x%x", value, mask) }
func is(value, mask uint32) string  { return fmt.Sprintf("-m mark --mark 0x%x/0x%x", value, mask) }

// renderer turns Services into rules of one family.
type renderer struct {
	fam   model.Family
	marks marks
	// masqueradeAll is the node's.
	masqueradeAll bool
}

func (r *renderer) service(svc *model.Service) rules {
	out := rules{}
	if svc == nil {
		return out
	}
	type distinct struct {
		*model.Target
		model.Protocol
		group model.Key
		chain string
	}
	var targets []distinct
	// The first view of a frontend that has a target names its chain: that is
	// the ClusterIP as a rule, and other ports change nothing about it.
	target := func(t *model.Target, f *model.Frontend, outside bool) string {
		group := f.AffinityGroup()
		for _, o := range targets {
			if o.Protocol == f.Protocol && o.Target.Equal(t) && (t.Affinity == 0 || o.group == group) {
				return o.chain
			}
		}
		chain := name("T", svc.Name, f.Key, outside)
		targets = append(targets, distinct{t, f.Protocol, group, chain})
		r.target(out, chain, t, group)
		return chain
	}
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		if f.Family() != r.fam {
			continue
		}
		r.frontend(out, f, false, jump(f.Inside, func() string { return target(f.Inside, f, false) }))
		if !f.Outside.Equal(f.Inside) {
			r.frontend(out, f, true, jump(f.Outside, func() string { return target(f.Outside, f, true) }))
		}
	}
	return out
}

// jump is the end of a rule that leads to a target.
func jump(t *model.Target, chain func() string) string {
	switch t.Action {
	case model.Reject:
		return "-g " + chainReject
	case model.Drop:
		return "-g " + chainDrop
	}
	return "-g " + chain()
}

func protocol(p model.Protocol) string {
	n := strings.ToLower(p.String())
	return "-p " + n + " -m " + n
}

// frontend leads from the tree of one view to a target.
func (r *renderer) frontend(out rules, f *model.Frontend, outside bool, to string) {
	port := fmt.Sprintf("%s --dport %d", protocol(f.Protocol), f.Port)
	if f.Kind == model.NodePort {
		root, kind := chainPorts, "P"
		if outside {
			root, kind = chainPortsO, "PO"
		}
		first := f.Port &^ 63
		group := name(kind, r.fam, f.Protocol, first)
		out.add(nat, root, fmt.Sprintf("%05d/%s", first, f.Protocol),
			fmt.Sprintf("%s --dport %d:%d -j %s", protocol(f.Protocol), first, first|63, group))
		key := fmt.Sprintf("%05d ", f.Port)
		r.keepClient(out, f, group, key, port)
		out.add(nat, group, key, port+" "+to)
		return
	}
	root, kind := chainServices, "D"
	if outside {
		root, kind = chainOutside, "DO"
	}
	group, host := out.group(root, kind, f.Addr), host(f.Addr)
	key := f.Addr.StringExpanded() + fmt.Sprintf(" %03d %05d ", f.Protocol, f.Port)
	r.keepClient(out, f, group, key, host+" "+port)
	if f.Restricted {
		r.sourceRanges(out, f, group, key, host+" "+port, to)
	} else {
		out.add(nat, group, key, host+" "+port+" "+to)
	}
	switch {
	case outside:
	case f.Kind == model.ClusterIP:
		out.noSuchPort(group, f.Addr, "") // behind all ports of the address
	case f.Kind == model.LoadBalancerIP:
		// The node's own addresses can be load balancer IPs too, where others
		// listen.
		out.noSuchPort(out.group(chainClosed, "C", f.Addr), f.Addr, " -m addrtype ! --dst-type LOCAL")
	}
}

// keepClient marks connections that are not masqueraded with all others, before
// the rule with the key leads them on.
func (r *renderer) keepClient(out rules, f *model.Frontend, group, key, match string) {
	if r.masqueradeAll && f.KeepsClient {
		out.add(nat, group, strings.TrimSuffix(key, " "), match+" "+set(r.marks.keep(), r.marks.keep()))
	}
}

// group leads from the root of a tree to the chain for an address and those
// near it, and names that.
func (r rules) group(root, kind string, a netip.Addr) string {
	near, _ := a.Prefix(a.BitLen() - 8)
	group := name(kind, near)
	r.add(nat, root, near.String(), fmt.Sprintf("-d %s -j %s", near, group))
	return group
}

// noSuchPort refuses what comes to an address that far.
func (r rules) noSuchPort(chain string, a netip.Addr, match string) {
	for _, p := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
		r.add(nat, chain, fmt.Sprintf("%s ~%03d", a.StringExpanded(), p),
			fmt.Sprintf("%s -p %s%s -g %s", host(a), strings.ToLower(p.String()), match, chainReject))
	}
}

func host(a netip.Addr) string { return fmt.Sprintf("-d %s/%d", a, a.BitLen()) }

// sourceRanges lets only these clients go on to the target.
func (r *renderer) sourceRanges(out rules, f *model.Frontend, group, key, match, to string) {
	for i, p := range f.SourceRanges {
		out.add(nat, group, fmt.Sprintf("%s %05d", key, i), fmt.Sprintf("-s %s %s %s", p, match, to))
	}
	out.add(nat, group, key+" ~", match+" -g "+chainDrop)
}

// target distributes connections over endpoints.
func (r *renderer) target(out rules, chain string, t *model.Target, group model.Key) {
	is := "-p " + strings.ToLower(group.Protocol.String()) + " " // DNAT to a port asks for it
	total := 0
	for i := range t.Endpoints {
		total += int(t.Endpoints[i].Weight)
	}
	for i := range t.Endpoints {
		e := &t.Endpoints[i]
		to := is + "-j DNAT --to-destination " + e.AddrPort.String()
		if t.Affinity > 0 {
			to = r.affinity(out, chain, fmt.Sprintf("0 %05d", i), group, e, t.Affinity, to)
		}
		pick := to
		if int(e.Weight) < total {
			pick = is + "-m statistic --mode random --probability " +
				probability(float64(e.Weight)/float64(total)) + " " + strings.TrimPrefix(to, is)
		}
		total -= int(e.Weight)
		out.add(nat, chain, fmt.Sprintf("1 %05d", i), pick)
		if e.Local {
			a := fmt.Sprintf("%s/%d", e.AddrPort.Addr(), e.AddrPort.Addr().BitLen())
			out.add(nat, chainHairpin, "0 "+a, fmt.Sprintf("-s %s -d %s -g %s", a, a, chainMasquerade+"-NOW"))
			out.add(nat, chainLocal, "0 "+a, "-d "+a+" -j RETURN")
		}
	}
}

// affinity remembers who went to an endpoint by any frontend of the group, and
// sends them there again; it returns how to get there for the first time.
func (r *renderer) affinity(out rules, chain, key string, group model.Key, e *model.Endpoint, d time.Duration, to string) string {
	own := name("E", group, e.AddrPort)
	mask := "255.255.255.255"
	if r.fam == model.IPv6 {
		mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	out.add(nat, chain, key, fmt.Sprintf("-m recent --rcheck --seconds %d --reap --name %s --mask %s --rsource -g %s",
		int(d/time.Second), own, mask, own))
	out.add(nat, own, "0", fmt.Sprintf("-m recent --set --name %s --mask %s --rsource", own, mask))
	out.add(nat, own, "1", to)
	return "-g " + own
}

// probability in the form that the kernel keeps and iptables-save prints: a
// fraction of 1 << 31.
func probability(p float64) string {
	const one = 0x80000000
	return fmt.Sprintf("%.11f", math.Round(p*one)/one)
}

// addresses gives the matches for the local addresses that NodePorts answer on.
func addresses(n *model.Node, fam model.Family) []string {
	var out []string
	for _, a := range n.NodePortRanges(fam) {
		if a == model.RangeOf(netip.PrefixFrom(fam.Unspecified(), 0)) {
			return []string{""}
		}
		out = append(out, fmt.Sprintf(" -m iprange --dst-range %s-%s", a.First, a.Last))
	}
	return out
}
