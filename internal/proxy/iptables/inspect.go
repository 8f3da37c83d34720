// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Inspect implements backend.Inspector: it runs iptables-save and changes nothing.
func (b *Backend) Inspect(ctx context.Context) (inspect.State, error) {
	s := inspect.NewState(inspect.Mode{Name: "iptables"})
	for _, f := range b.families {
		s.Families = append(s.Families, f.render.fam)
		dumps := map[table]*dump{}
		for _, t := range []table{nat, filter} {
			var err error
			if dumps[t], err = f.run.read(ctx, t); err != nil {
				return inspect.State{}, err
			}
		}
		r := reader{state: &s, fam: f.render.fam, program: "iptables", chains: dumps[nat].chains}
		if r.fam == model.IPv6 {
			r.program = "ip6tables"
		}
		r.services()
		if b.node != nil {
			s.Faults = append(s.Faults, r.faults(f.render.node(b.node), dumps)...)
		}
	}
	return s, nil
}

// faults compares the rules that follow from the node alone with those that there are.
func (r *reader) faults(want rules, dumps map[table]*dump) (faults []inspect.Difference) {
	missing := func(t table, chain, text string) {
		faults = append(faults, inspect.Difference{Kind: inspect.Missing, What: "rule", Rule: r.text(t, chain, text)})
	}
	for id, text := range want {
		if !slices.Contains(dumps[id.table].chains[id.chain], text) {
			missing(id.table, id.chain, text)
		}
	}
	for _, h := range hooks {
		if !slices.Contains(dumps[h.table].jumps[h.chain], h.jump) {
			missing(h.table, h.chain, h.jump)
		}
	}
	return faults
}

// reader follows the rules of one family's nat table.
type reader struct {
	state   *inspect.State
	fam     model.Family
	program string
	chains  map[string][]string
}

func (r *reader) text(t table, chain, text string) string {
	return fmt.Sprintf("%s -t %s -A %s %s", r.program, t, chain, text)
}

// rule is the text of a rule, by option.
type rule map[string]string

func parseRule(text string) rule {
	parsed, words := rule{}, strings.Fields(text)
	for i, w := range words {
		if strings.HasPrefix(w, "-") {
			parsed[w] = strings.Join(words[i+1:min(i+2, len(words))], "")
		}
	}
	return parsed
}

// target is the chain or target that a rule leads to.
func (p rule) target() string {
	if to, ok := p["-g"]; ok {
		return to
	}
	return p["-j"]
}

func (p rule) addr(option string) netip.Addr { return p.prefix(option).Addr() }

func (p rule) prefix(option string) netip.Prefix {
	prefix, _ := netip.ParsePrefix(p[option]) // the zero Prefix is no Service's
	return prefix
}

// frontend is what a rule matches; ok is false where it matches no single port.
func (p rule) frontend(fam model.Family) (k model.Key, ok bool) {
	k = model.Key{Addr: fam.Unspecified(), Protocol: map[string]model.Protocol{"tcp": model.TCP, "udp": model.UDP, "sctp": model.SCTP}[p["-p"]]}
	if _, ok := p["-d"]; ok {
		k.Addr = p.addr("-d")
	}
	port, err := strconv.ParseUint(p["--dport"], 10, 16)
	k.Port = uint16(port)
	return k, err == nil
}

// each calls f with the rules of a chain.
func (r *reader) each(chain string, f func(p rule, text string)) {
	for _, text := range r.chains[chain] {
		f(parseRule(text), r.text(nat, chain, text))
	}
}

// services follows the trees of Services and what goes with them.
func (r *reader) services() {
	inside, outside := map[model.Key]*inspect.View{}, map[model.Key]*inspect.View{}
	for root, views := range map[string]map[model.Key]*inspect.View{
		chainServices: inside, chainPorts: inside, chainOutside: outside, chainPortsO: outside,
	} {
		r.each(root, func(p rule, _ string) { r.group(p.target(), views) })
	}
	for key, v := range inside {
		r.frontend(key).Inside, r.frontend(key).Outside = v, v
	}
	for key, v := range outside {
		r.frontend(key).Outside = v
	}
	r.closed()
	r.each(chainHairpin, func(p rule, text string) { r.state.Hairpin[p.addr("-d")] = text })
	r.each(chainLocal, func(p rule, text string) {
		if p.target() == "RETURN" {
			r.state.LocalEndpoints[p.addr("-d")] = text
		}
	})
	r.each(chainPrerouting, func(p rule, text string) {
		if pods := p.prefix("-s"); pods.IsValid() {
			r.state.LocalPods = append(r.state.LocalPods, inspect.Range{AddrRange: model.RangeOf(pods), Rule: text})
		}
	})
	r.each(chainNodePorts, func(p rule, text string) {
		at := model.RangeOf(netip.PrefixFrom(r.fam.Unspecified(), 0))
		if first, last, ok := strings.Cut(p["--dst-range"], "-"); ok {
			at.First, _ = netip.ParseAddr(first)
			at.Last, _ = netip.ParseAddr(last)
		}
		r.state.NodePorts = append(r.state.NodePorts, inspect.Range{AddrRange: at, Rule: text})
	})
}

func (r *reader) frontend(key model.Key) *inspect.Frontend {
	f := r.state.Frontends[key]
	if f == nil {
		f = &inspect.Frontend{}
		r.state.Frontends[key] = f
	}
	return f
}

// group adds the views of the frontends that a chain has.
func (r *reader) group(chain string, views map[model.Key]*inspect.View) {
	r.each(chain, func(p rule, text string) {
		key, ok := p.frontend(r.fam)
		if !ok {
			return
		}
		if p.target() == "MARK" {
			r.frontend(key).KeepsClient = true
			return
		}
		v := views[key]
		if v == nil {
			v = r.target(p.target())
			v.Rule = text
			views[key] = v
		}
		// Behind the rules of source ranges one drops all others.
		if pods := p.prefix("-s"); pods.IsValid() {
			v.Restricted = true
			v.SourceRanges = append(v.SourceRanges, inspect.Range{AddrRange: model.RangeOf(pods), Rule: text})
		}
	})
}

// closed finds the addresses that refuse ports without a Service, by a rule for each
// protocol.
func (r *reader) closed() {
	for root, inside := range map[string]bool{chainServices: true, chainClosed: false} {
		r.each(root, func(p rule, _ string) {
			rules := map[netip.Addr]int{}
			r.each(p.target(), func(p rule, text string) {
				if _, port := p["--dport"]; port || p.target() != chainReject {
					return
				}
				a := p.addr("-d")
				if rules[a]++; rules[a] == 3 {
					r.state.Close(a, inside, text)
				}
			})
		})
	}
}

// target reads how a chain distributes connections.
func (r *reader) target(chain string) *inspect.View {
	switch chain {
	case chainReject:
		return &inspect.View{Action: model.Reject}
	case chainDrop:
		return &inspect.View{Action: model.Drop}
	}
	v, left, sticky := &inspect.View{}, 1.0, map[string]time.Duration{}
	r.each(chain, func(p rule, text string) {
		to := p.target()
		if seconds, ok := p["--seconds"]; ok {
			n, _ := strconv.Atoi(seconds)
			sticky[to] = time.Duration(n) * time.Second
			return
		}
		share := left
		if probability, ok := p["--probability"]; ok {
			f, _ := strconv.ParseFloat(probability, 64)
			share *= f
		}
		left -= share
		at := p["--to-destination"]
		var affinity time.Duration
		if to != "DNAT" {
			affinity = sticky[to]
			remembers := false
			r.each(to, func(p rule, _ string) {
				_, set := p["--rsource"]
				remembers = remembers || set
				at += p["--to-destination"]
			})
			if !remembers {
				affinity = 0
			}
		}
		ep, err := netip.ParseAddrPort(at)
		if err != nil {
			v.Gaps = append(v.Gaps, text)
			return
		}
		if len(v.Endpoints) == 0 || affinity < v.Affinity {
			v.Affinity = affinity
		}
		v.Endpoints = append(v.Endpoints, inspect.Endpoint{AddrPort: ep, Share: share, Rule: text})
	})
	v.Sort()
	return v
}
