// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Scope is where stale entries can be: flows that dialled one frontend.
type Scope struct {
	Key model.Key
	// Keep are the endpoints that flows may stay with.
	Keep []netip.AddrPort
	// Gone are endpoints that are known to have gone. For a NodePort only flows
	// to these are ended, or ones that were not translated at all: the port
	// number alone does not make a flow a Service's.
	Gone []netip.AddrPort
	// Unanswered leaves flows alone that have been answered, by whomever.
	Unanswered bool
}

// isNodePort says that Key has no address.
func (s *Scope) isNodePort() bool { return s.Key.Addr.IsUnspecified() }

// Stale says whether an entry is to go: destination is what the client
// dialled, endpoint where it was led to. local says whether an address is
// this node's.
func (s *Scope) Stale(destination, endpoint netip.AddrPort, local func(netip.Addr) bool) bool {
	if destination.Port() != s.Key.Port || slices.Contains(s.Keep, endpoint) {
		return false
	}
	if !s.isNodePort() {
		return destination.Addr() == s.Key.Addr
	}
	if !local(destination.Addr()) {
		return false
	}
	return slices.Contains(s.Gone, endpoint) || endpoint == destination
}

// Plan gives the scopes in which a change of a Service can leave stale
// entries. tcp has TCP connections to endpoints that went cut off; without it
// they are left to end by themselves, and only those go that never came about.
func Plan(c model.Change, tcp bool) []Scope {
	var scopes []Scope
	before, after := frontends(c.Old), frontends(c.New)
	for key, old := range before {
		keep := serving(after[key])
		gone := without(serving(old), keep)
		if after[key] == nil || len(gone) > 0 {
			scopes = append(scopes, Scope{Key: key, Keep: keep, Gone: gone, Unanswered: key.Protocol == model.TCP && !tcp})
		}
	}
	for key, f := range after {
		// What was dialled before the frontend existed was led nowhere.
		if before[key] == nil && key.Protocol != model.TCP {
			scopes = append(scopes, Scope{Key: key, Keep: serving(f)})
		}
	}
	slices.SortFunc(scopes, func(a, b Scope) int { return a.Key.Compare(b.Key) })
	return scopes
}

func frontends(svc *model.Service) map[model.Key]*model.Frontend {
	if svc == nil {
		return nil
	}
	m := make(map[model.Key]*model.Frontend, len(svc.Frontends))
	for i := range svc.Frontends {
		m[svc.Frontends[i].Key] = &svc.Frontends[i]
	}
	return m
}

// serving gives the endpoints of a frontend: those that serve for UDP and
// SCTP, those that get new connections for TCP.
func serving(f *model.Frontend) []netip.AddrPort {
	if f == nil {
		return nil
	}
	if f.Protocol != model.TCP {
		return f.Serving
	}
	var aps []netip.AddrPort
	for _, t := range []*model.Target{f.Inside, f.Outside} {
		for _, ep := range t.Endpoints {
			if !slices.Contains(aps, ep.AddrPort) {
				aps = append(aps, ep.AddrPort)
			}
		}
	}
	return aps
}

func without(aps, minus []netip.AddrPort) []netip.AddrPort {
	var left []netip.AddrPort
	for _, ap := range aps {
		if !slices.Contains(minus, ap) {
			left = append(left, ap)
		}
	}
	return left
}
