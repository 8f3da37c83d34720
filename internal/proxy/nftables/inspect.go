// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// found are the elements of the tables.
type found = elements.Found[setID]

type foundID = elements.ID[setID]

func setsOf(f model.Family) []nft.Set {
	all := sets(tableOf(f))
	return all[:]
}

// inspectMode says what is special about the mode.
func inspectMode(families ...model.Family) inspect.Mode {
	return inspect.Mode{Name: "nftables", Families: families, Shares: slotShares}
}

// slotShares are the parts of a table that endpoints get.
func slotShares(eps []model.Endpoint) []float64 {
	shares := make([]float64, len(eps))
	if len(eps) > 0 {
		table := slotTable(eps)
		for _, i := range table {
			shares[i] += 1 / float64(len(table))
		}
	}
	return shares
}

// Inspect implements backend.Inspector: it reads the tables and changes nothing.
func (b *Backend) Inspect(ctx context.Context) (inspect.State, error) {
	all := elements.NewFound[setID](setsOf)
	var families []model.Family
	var faults []inspect.Difference
	tables := elements.Tables[setID]{Conn: b.conn, Table: tableOf, Sets: setsOf}
	for _, f := range b.families {
		families = append(families, f.fam)
		if err := ctx.Err(); err != nil {
			return inspect.State{}, err
		}
		if _, err := tables.Read(all.Map, f.fam); err != nil {
			return inspect.State{}, err
		}
		have, err := f.read(b.conn)
		if err != nil {
			return inspect.State{}, err
		}
		if have.dormant {
			faults = append(faults, inspect.Difference{Kind: inspect.Other, What: "flags of the table: dormant", Rule: "nft table " + f.table.String()})
		}
		if b.node != nil {
			prog := &program{table: f.table, fam: f.fam, node: b.node}
			chains := prog.chains()
			for id := range f.classes {
				if u, c, ok := classOf(element{id.set, nft.Element{Key: id.key}}); ok {
					chains = append(chains, prog.classChain(u, c))
				}
			}
			faults = append(faults, chainFaults(chains, have.chains)...)
		}
	}
	s := decode(all, families)
	s.Faults = append(s.Faults, faults...)
	return s, nil
}

// decode says what elements do.
func decode(all found, families []model.Family) inspect.State {
	s := inspect.NewState(inspectMode(families...))
	s.Frontends = all.Frontends(setServices, func(_ model.Key, id foundID, value string) *inspect.View {
		return decodeView(&s, all, uses[id.Set-setServices], id, value)
	})
	for key, f := range s.Frontends {
		u := use{nodePort: key.Addr.IsUnspecified()}
		_, f.KeepsClient = all.Map[foundID{Family: key.Family(), Set: u.keepsClient(), Key: elements.FrontendKey(key)}]
	}
	all.Admit(s.Frontends, setRestricted, setSourceRanges)
	all.Addresses(setClusterIPs, func(a netip.Addr, rule string) { s.Close(a, true, rule) })
	all.Addresses(setLoadBalancerIPs, func(a netip.Addr, rule string) { s.Close(a, false, rule) })
	all.Addresses(setLocalEndpoints, func(a netip.Addr, rule string) { s.LocalEndpoints[a] = rule })
	all.Addresses(setHairpin, func(a netip.Addr, rule string) { s.Hairpin[a] = rule })
	s.LocalPods, s.NodePorts = all.Ranges(setLocalPods), all.Ranges(setNodePortAddresses)
	return s
}

// decodeView reads an element of a services map.
func decodeView(s *inspect.State, all found, u use, id foundID, value string) *inspect.View {
	c := decodeClass(value)
	class := foundID{Family: id.Family, Set: u.of(setClasses), Key: value}
	if all.Map[class] != u.verdict(c) {
		s.Faults = append(s.Faults, inspect.Difference{Kind: inspect.Missing, What: "verdict of a class", Rule: all.Sets[id.Family][class.Set].Text(class.Element(u.verdict(c)))})
		return nil // no rule matches
	}
	v := &inspect.View{Rule: all.Rule(id)}
	switch c {
	case classReject:
		v.Action = model.Reject
	case classDrop:
		v.Action = model.Drop
	default:
		decodeEndpoints(v, all, u, id, c)
	}
	return v
}

func decodeEndpoints(v *inspect.View, all found, u use, frontend foundID, c class) {
	if _, remembers := all.Map[foundID{Family: frontend.Family, Set: u.groups(), Key: frontend.Key}]; remembers {
		v.Affinity = c.affinity()
	}
	at := map[netip.AddrPort]int{}
	for slot := range uint32(c.slots()) {
		set, n := u.of(setEndpoints), number(slot)
		id := foundID{Family: frontend.Family, Set: set, Key: frontend.Key + n}
		value, ok := "", true
		if c.affinity() > 0 {
			id.Set = u.of(setAffinitySlots)
			if n, ok = all.Map[id]; ok {
				id.Set, id.Key = u.of(setAffinityEndpoints), frontend.Key+n
			}
		}
		if ok {
			value, ok = all.Map[id]
		}
		ep := decodeEndpoint(value)
		if !ok || !ep.IsValid() {
			v.Gaps = append(v.Gaps, all.Sets[id.Family][id.Set].Text(id.Element("")))
			continue
		}
		i, known := at[ep]
		if !known {
			i = len(v.Endpoints)
			at[ep] = i
			v.Endpoints = append(v.Endpoints, inspect.Endpoint{AddrPort: ep, Rule: all.Rule(id)})
		}
		v.Endpoints[i].Share += 1 / float64(c.slots())
	}
	v.Gaps = slices.Compact(v.Gaps)
	v.Sort()
}

// decodeEndpoint reads an address and a port.
func decodeEndpoint(value string) netip.AddrPort {
	n := len(value) - 4
	if n < 0 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice([]byte(value[:n]))
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(value[n:])))
}

// chainFaults compares chains with those that a table has: whether they are there, with
// their hooks and numbers of rules, as the kernel has rules in a form of its own.
func chainFaults(want []nft.Chain, have map[string]*nft.ReadChain) (faults []inspect.Difference) {
	for _, w := range want {
		rule := fmt.Sprintf("nft chain %s %s", w.Table, w.Name)
		switch h := have[w.Name]; {
		case h == nil:
			faults = append(faults, inspect.Difference{Kind: inspect.Missing, What: "chain", Rule: rule})
		case (h.Hook == nil) != (w.Hook == nil) || h.Hook != nil && *h.Hook != *w.Hook || h.PolicyDrop:
			faults = append(faults, inspect.Difference{Kind: inspect.Other, What: "hook or policy of a chain", Rule: rule})
		case len(h.Rules) != len(w.Rules):
			what := fmt.Sprintf("rules of a chain: %d instead of %d", len(h.Rules), len(w.Rules))
			for _, r := range w.Rules {
				if r.Comment != "" && !slices.ContainsFunc(h.Rules, func(k nft.ReadRule) bool { return strings.Contains(k.UserData, r.Comment) }) {
					what += fmt.Sprintf(", without %q", r.Comment)
				}
			}
			faults = append(faults, inspect.Difference{Kind: inspect.Other, What: what, Rule: rule})
		}
	}
	return faults
}
