// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// hook is a jump from a built-in chain to one of ours.
type hook struct {
	table       table
	chain, jump string
}

var hooks = []hook{
	{nat, "PREROUTING", "-j " + chainPrerouting},
	{nat, "OUTPUT", "-j " + chainOutput},
	{nat, "POSTROUTING", "-j " + chainPostrouting},
	{filter, "INPUT", "-j " + chainInput},
	{filter, "FORWARD", "-j " + chainForward},
	{filter, "OUTPUT", "-j " + chainFilter},
}

// list appends rules to a chain in order.
func (r rules) list(t table, chain string, texts ...string) {
	for i, text := range texts {
		r.add(t, chain, fmt.Sprintf("%04d", i), text)
	}
}

// node gives the rules that follow from the node alone.
func (r *renderer) node(n *model.Node) rules {
	out := rules{}
	m := r.marks
	clear := set(0, m.ours|m.pod)
	entrance := []string{set(m.ours, m.all())}
	inside := []string{}
	for _, match := range r.fromLocalPods(n) {
		inside = append(inside, match+" "+set(m.pod, m.pod))
	}
	ports, portsO := []string{}, []string{}
	for _, a := range addresses(n, r.fam) {
		ports = append(ports, strings.TrimSpace(a+" -j "+chainPorts))
		portsO = append(portsO, strings.TrimSpace(a+" -j "+chainPortsO))
	}
	const local = "-m addrtype --dst-type LOCAL -j "
	notPod := is(0, m.pod)
	out.list(nat, chainPrerouting, slices.Concat(entrance, inside, []string{
		notPod + " -j " + chainOutside,
		"-j " + chainServices,
		notPod + " -j " + chainClosed,
		notPod + " " + local + chainNodePortsO,
		local + chainNodePorts,
		clear,
	})...)
	out.list(nat, chainOutput, slices.Concat(entrance, []string{
		"-j " + chainServices, local + chainNodePorts, clear,
	})...)
	out.list(nat, chainNodePorts, ports...)
	out.list(nat, chainNodePortsO, portsO...)
	// Others' rules behind ours still see the packet: it is not translated.
	out.list(nat, chainReject, set(m.refuse, m.all()), "-j ACCEPT")
	out.list(nat, chainDrop, set(m.refuse|m.pod, m.all()), "-j ACCEPT")
	r.postrouting(out, n)
	r.filter(out, n)
	return out
}

// postrouting: see the table in package model.
func (r *renderer) postrouting(out rules, n *model.Node) {
	m := r.marks
	out.list(nat, chainPostrouting,
		is(m.ours, m.ours)+" -j "+chainMasquerade,
		is(m.ours, m.ours)+" "+set(0, m.all()))
	now := chainMasquerade + "-NOW"
	out.list(nat, now, set(0, m.all()), "-j MASQUERADE --random-fully")
	needed := chainMasquerade + "-NEEDED"
	steps := []string{"-j " + chainHairpin, is(m.pod, m.pod) + " -j RETURN"}
	if r.fam == model.IPv4 {
		steps = append(steps, "-s 127.0.0.0/8 -g "+now)
	}
	out.list(nat, needed, append(steps, "-g "+chainLocal)...)
	steps = []string{"-o lo -j RETURN"}
	if n.MasqueradeAll {
		steps = append(steps, is(m.keep(), m.keep())+" -g "+needed, "-g "+now)
	} else {
		steps = append(steps, "-g "+needed)
	}
	out.list(nat, chainMasquerade, steps...)
	out.add(nat, chainLocal, "~", "-g "+now)
}

func (r *renderer) filter(out rules, n *model.Node) {
	m := r.marks
	refuse := is(m.refuse, m.all())
	unreachable := "icmp-port-unreachable"
	if r.fam == model.IPv6 {
		unreachable = "icmp6-port-unreachable"
	}
	out.list(filter, chainFilter,
		is(m.refuse|m.pod, m.all())+" -j DROP",
		"-p tcp "+refuse+" -j REJECT --reject-with tcp-reset",
		refuse+" -j REJECT --reject-with "+unreachable)
	input := []string{"-j " + chainFilter}
	if r.fam == model.IPv4 && n.LocalhostNodePorts {
		// Undo what route_localnet opens (CVE-2020-8558).
		input = append([]string{"-d 127.0.0.0/8 ! -i lo -m conntrack --ctstate INVALID,NEW -j DROP"}, input...)
	}
	out.list(filter, chainInput, input...)
	// What connection tracking does not know would reach its receiver
	// untranslated and be answered with a reset (kubernetes#74839).
	forward := []string{}
	for _, match := range append(r.fromLocalPods(n), r.toLocalPods(n)...) {
		forward = append(forward, match+" -m conntrack --ctstate INVALID -j DROP")
	}
	out.list(filter, chainForward, append(forward, "-j "+chainFilter)...)
}

func (r *renderer) fromLocalPods(n *model.Node) []string { return r.localPods(n, "-s", "-i") }
func (r *renderer) toLocalPods(n *model.Node) []string   { return r.localPods(n, "-d", "-o") }

// localPods gives the alternatives that match this node's Pods.
func (r *renderer) localPods(n *model.Node, address, device string) []string {
	var out []string
	for _, pattern := range n.PodInterfaces {
		if p, ok := strings.CutSuffix(pattern, "*"); ok {
			pattern = p + "+"
		}
		out = append(out, device+" "+pattern)
	}
	if len(n.PodInterfaces) > 0 {
		return out
	}
	for _, p := range n.PodCIDRs {
		if model.FamilyOf(p.Addr()) == r.fam {
			out = append(out, address+" "+p.Masked().String())
		}
	}
	return out
}
