// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Inspect implements backend.Inspector: it reads the tables and changes nothing. The
// endpoints are those of the proxy.
func (b *Backend) Inspect(ctx context.Context) (inspect.State, error) {
	if err := ctx.Err(); err != nil {
		return inspect.State{}, err
	}
	all := elements.NewFound[setID](setsOf)
	have, broken, err := b.tables.read()
	if err != nil {
		return inspect.State{}, err
	}
	all.Map = have
	s := inspect.NewState(inspect.Mode{Name: b.Name(), Families: b.families, Proxies: true})
	s.Frontends = all.Frontends(setServices, func(k model.Key, id elementID, value string) *inspect.View {
		v := &inspect.View{Rule: all.Rule(id)}
		switch value {
		case actionReject.data():
			v.Action = model.Reject
		case actionDrop.data():
			v.Action = model.Drop
		default:
			b.proxy.view(v, k, id.Set == setServicesOutside || id.Set == setNodePortsOutside)
		}
		return v
	})
	all.Admit(s.Frontends, setRestricted, setSourceRanges)
	all.Addresses(setClusterIPs, func(a netip.Addr, rule string) { s.Close(a, true, rule) })
	all.Addresses(setLoadBalancerIPs, func(a netip.Addr, rule string) { s.Close(a, false, rule) })
	s.LocalPods, s.NodePorts = all.Ranges(setLocalPods), all.Ranges(setNodePortAddresses)
	b.proxy.listeners(s.Listeners)
	for _, f := range broken {
		if b.synced {
			s.Faults = append(s.Faults, inspect.Difference{Kind: inspect.Other, What: "rules of a table, which are not as they were written", Rule: "nft table " + tableOf(f).String()})
		}
	}
	return s, nil
}

// view adds to v where connections to a frontend go.
func (p *proxy) view(v *inspect.View, k model.Key, outside bool) {
	p.mu.RLock()
	f := p.frontends[k]
	p.mu.RUnlock()
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.inside
	if outside {
		r = f.outside
	}
	if r == nil {
		return
	}
	v.Affinity = r.target.Affinity
	for i, share := range inspect.ByWeight(r.target.Endpoints) {
		ep := r.target.Endpoints[i].AddrPort
		v.Endpoints = append(v.Endpoints, inspect.Endpoint{AddrPort: ep, Share: share, Rule: fmt.Sprintf("userspace proxy from %s to %s", k, ep)})
	}
}

// listeners adds the sockets that are open.
func (p *proxy) listeners(found map[inspect.Listener]string) {
	open := map[string]bool{}
	for _, c := range p.closers {
		switch c := c.(type) {
		case *net.TCPListener:
			raw, err := c.SyscallConn()
			open["TCP "+c.Addr().String()] = err == nil && raw.Control(func(uintptr) {}) == nil
		case *net.UDPConn:
			raw, err := c.SyscallConn()
			open["UDP "+c.LocalAddr().String()] = err == nil && raw.Control(func(uintptr) {}) == nil
		}
	}
	for fam, views := range p.at {
		for v, at := range views {
			for proto, port := range map[model.Protocol]uint16{model.TCP: at.tcp, model.UDP: at.udp} {
				rule := fmt.Sprintf("%s %s", proto, netip.AddrPortFrom(loopback(fam), port))
				if open[rule] {
					found[inspect.Listener{Family: fam, Protocol: proto, Outside: v == viewOutside}] = "userspace listener " + rule
				}
			}
		}
	}
}
