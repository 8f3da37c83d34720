// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Expected returns the State that a mode is to reach. It has no Rules.
func Expected(d model.Desired, m Mode) State {
	s := NewState(m)
	for _, svc := range d.Services {
		for i := range svc.Frontends {
			if f := &svc.Frontends[i]; slices.Contains(m.Families, f.Family()) {
				s.expect(&d.Node, f)
			}
		}
	}
	for _, fam := range m.Families {
		for _, p := range d.Node.PodCIDRs {
			if model.FamilyOf(p.Addr()) == fam {
				s.LocalPods = append(s.LocalPods, Range{AddrRange: model.RangeOf(p)})
			}
		}
		for _, r := range d.Node.NodePortRanges(fam) {
			s.NodePorts = append(s.NodePorts, Range{AddrRange: r})
		}
		for _, proto := range []model.Protocol{model.TCP, model.UDP} {
			if m.Proxies {
				s.Listeners[Listener{fam, proto, false}], s.Listeners[Listener{fam, proto, true}] = "", ""
			}
		}
	}
	return s
}

func (s *State) expect(n *model.Node, f *model.Frontend) {
	if f.Kind == model.ClusterIP || f.Kind == model.LoadBalancerIP || f.Kind == model.ExternalIP && s.Local {
		s.Close(f.Addr, f.Kind == model.ClusterIP || s.Local, "")
	}
	if s.Proxies && f.Protocol == model.SCTP {
		return
	}
	out := &Frontend{Inside: s.view(f, f.Inside), KeepsClient: f.KeepsClient && n.MasqueradeAll && !s.Proxies}
	out.Outside = out.Inside
	if !f.Outside.Equal(f.Inside) {
		out.Outside = s.view(f, f.Outside)
	}
	if s.Loopback != nil && f.Kind == model.NodePort && f.Family() == model.IPv4 && n.LocalhostNodePorts && len(f.Inside.Endpoints) > 0 {
		out.Loopback = &View{Endpoints: s.Loopback(f.Inside)}
	}
	s.Frontends[f.Key] = out
}

// Close adds an address whose other ports are refused.
func (s *State) Close(a netip.Addr, inside bool, rule string) {
	if have, ok := s.Closed[a]; !ok || !have.Inside {
		s.Closed[a] = Closed{Inside: inside, Rule: rule}
	}
}

func (s *State) view(f *model.Frontend, t *model.Target) *View {
	v := &View{Action: t.Action, Affinity: t.Affinity, Restricted: f.Restricted}
	for _, p := range f.SourceRanges {
		v.SourceRanges = append(v.SourceRanges, Range{AddrRange: model.RangeOf(p)})
	}
	shares := ByWeight
	if s.Shares != nil {
		shares = s.Shares
	}
	for i, share := range shares(t.Endpoints) {
		e := &t.Endpoints[i]
		v.Endpoints = append(v.Endpoints, Endpoint{AddrPort: e.AddrPort, Share: share})
		if e.Local && !s.Proxies {
			s.LocalEndpoints[e.AddrPort.Addr()], s.Hairpin[e.AddrPort.Addr()] = "", ""
		}
	}
	return v
}

// ByWeight returns the endpoints' shares of new connections.
func ByWeight(eps []model.Endpoint) []float64 {
	sum, shares := 0, make([]float64, len(eps))
	for i := range eps {
		sum += max(int(eps[i].Weight), 1)
	}
	for i := range eps {
		shares[i] = float64(max(int(eps[i].Weight), 1)) / float64(sum)
	}
	return shares
}

// Sort puts the endpoints of v in order.
func (v *View) Sort() {
	slices.SortFunc(v.Endpoints, func(a, b Endpoint) int { return a.AddrPort.Compare(b.AddrPort) })
}
