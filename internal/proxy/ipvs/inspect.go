// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// reader follows the elements to the virtual servers.
type reader struct {
	elements.Found[setID]
	state   *inspect.State
	servers map[ipvs.Key]*ipvs.VirtualServer
	// led are the virtual servers to which elements lead.
	led map[ipvs.Key]bool
}

// Inspect implements backend.Inspector: it reads the tables, routes and virtual servers
// and changes nothing.
func (b *Backend) Inspect(ctx context.Context) (inspect.State, error) {
	if err := ctx.Err(); err != nil {
		return inspect.State{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tables, err := b.tables.read()
	if err != nil {
		return inspect.State{}, err
	}
	servers, err := b.servers.Read()
	if err != nil {
		return inspect.State{}, err
	}
	s := inspect.NewState(inspect.Mode{Name: b.Name(), Families: b.cfg.Families, Local: true, Loopback: func(t *model.Target) []inspect.Endpoint {
		v := inspect.View{}
		for _, ep := range loopbackTable(t) {
			addSlot(&v, ep, "")
		}
		v.Sort()
		return v.Endpoints
	}})
	if s.Own, err = b.routes.own(); err != nil {
		return inspect.State{}, err
	}
	r := reader{Found: elements.NewFound[setID](sets), state: &s, servers: map[ipvs.Key]*ipvs.VirtualServer{}, led: map[ipvs.Key]bool{}}
	r.Map = tables.elements
	for i := range servers {
		r.servers[servers[i].Key] = &servers[i]
	}
	r.services()
	if !b.synced {
		return s, nil // what the tables and routes must be is not known
	}
	for _, t := range tables.rebuild {
		s.Faults = append(s.Faults, inspect.Difference{Kind: inspect.Other, What: "rules or sets of a table, which are not as they were written", Rule: "nft table " + t.String()})
	}
	routed, err := b.routes.listed()
	if err != nil {
		return inspect.State{}, err
	}
	for a := range s.Closed {
		if !routed[a] {
			s.Faults = append(s.Faults, inspect.Difference{Kind: inspect.Missing, What: "local route", Rule: fmt.Sprintf("ip route local %s dev %s table %d", a, Name, b.cfg.RouteTable)})
		}
	}
	return s, nil
}

func (r *reader) services() {
	s := r.state
	keeps := map[model.Key]bool{}
	s.Frontends = r.Frontends(setServices, func(k model.Key, id elementID, value string) *inspect.View {
		act := actionOf(value)
		keeps[k] = keeps[k] || act&markMask == markBase && act&markKeep != 0
		return r.view(k, id, act)
	})
	for k := range keeps {
		s.Frontends[k].KeepsClient = keeps[k]
	}
	r.loopback()
	r.Admit(s.Frontends, setRestricted, setSourceRanges)
	r.Addresses(setAddresses, func(a netip.Addr, rule string) { s.Close(a, true, rule) })
	r.Addresses(setLocalEndpoints, func(a netip.Addr, rule string) { s.LocalEndpoints[a] = rule })
	r.Addresses(setHairpin, func(a netip.Addr, rule string) { s.Hairpin[a] = rule })
	s.LocalPods, s.NodePorts = r.Ranges(setLocalPods), r.Ranges(setNodePortAddresses)
	for key, server := range r.servers {
		open := slices.ContainsFunc(server.Reals, func(real ipvs.RealServer) bool { return real.Weight > 0 })
		if server.Tag && open && !r.led[key] {
			s.Faults = append(s.Faults, inspect.Difference{Kind: inspect.Extra, What: "virtual server to which nothing leads", Rule: serverText(key)})
		}
	}
}

func (r *reader) view(k model.Key, id elementID, act action) *inspect.View {
	v := &inspect.View{Rule: r.Rule(id)}
	switch act {
	case actionReject:
		v.Action = model.Reject
		return v
	case actionDrop:
		v.Action = model.Drop
		return v
	}
	key := ipvs.Key{Addr: k.Addr, Port: k.Port, Protocol: uint8(k.Protocol)}
	if act.byMark() {
		key = ipvs.Key{Mark: uint32(act), IPv6: id.Family == model.IPv6}
	}
	r.led[key] = true
	server := r.servers[key]
	if server == nil {
		v.Gaps = []string{serverText(key)}
		return v
	}
	v.Rule += ", " + serverText(key)
	v.Affinity = server.Persistence
	v.Hashed = act.byMark() && (server.Scheduler == affinityScheduler || server.Scheduler == affinityFallback)
	total := uint32(0)
	for _, real := range server.Reals {
		total += real.Weight
	}
	for _, real := range server.Reals {
		if real.Weight > 0 { // and else it drains
			v.Endpoints = append(v.Endpoints, inspect.Endpoint{
				AddrPort: real.AddrPort, Share: float64(real.Weight) / float64(total),
				Rule: fmt.Sprintf("ipvs destination %s weight %d of %s", real.AddrPort, real.Weight, serverText(key)),
			})
		}
	}
	v.Sort()
	return v
}

func serverText(k ipvs.Key) string {
	if k.Mark != 0 {
		return fmt.Sprintf("ipvs virtual server FWM %#x IPv6 %t", k.Mark, k.IPv6)
	}
	return fmt.Sprintf("ipvs virtual server %s %s", model.Protocol(k.Protocol), netip.AddrPortFrom(k.Addr, k.Port))
}

// loopback reads the slots of NodePorts at 127.0.0.1.
func (r *reader) loopback() {
	for k, f := range r.state.Frontends {
		if k.Addr != model.IPv4.Unspecified() {
			continue
		}
		v := &inspect.View{}
		for at := range uint32(loopbackSlots) {
			id := elementID{Family: model.IPv4, Set: setLoopbackPorts, Key: elements.FrontendKey(k) + string(expr.Word(at))}
			value, ok := r.Map[id]
			if !ok {
				v.Gaps = append(v.Gaps, r.Sets[id.Family][id.Set].Text(id.Element("")))
				continue
			}
			a, _ := netip.AddrFromSlice([]byte(value)[:4])
			addSlot(v, netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(value)[4:])), r.Rule(id))
		}
		if v.Sort(); len(v.Endpoints) > 0 {
			f.Loopback = v
		}
	}
}

// addSlot gives an endpoint one slot more.
func addSlot(v *inspect.View, ep netip.AddrPort, rule string) {
	i := slices.IndexFunc(v.Endpoints, func(e inspect.Endpoint) bool { return e.AddrPort == ep })
	if i < 0 {
		i = len(v.Endpoints)
		v.Endpoints = append(v.Endpoints, inspect.Endpoint{AddrPort: ep, Rule: rule})
	}
	v.Endpoints[i].Share += 1.0 / loopbackSlots
}
