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
	// Keep are the endpoints that flows may stay with, sorted.
	Keep []netip.AddrPort
	// Gone, sorted, are endpoints that are known to have gone. For a NodePort only flows
	// to these are ended, or ones that were not translated at all: the port
	// number alone does not make a flow a Service's.
	Gone []netip.AddrPort
	// AllGone says that it is not known which endpoints have gone: all but Keep.
	AllGone bool
	// Unanswered leaves flows alone that have been answered, by whomever.
	Unanswered bool
}

// isNodePort says that Key has no address.
func (s *Scope) isNodePort() bool { return s.Key.Addr.IsUnspecified() }

// Stale says whether an entry is to go: destination is what the client
// dialled, endpoint where it was led to. local says whether an address is
// this node's.
func (s *Scope) Stale(destination, endpoint netip.AddrPort, local func(netip.Addr) bool) bool {
	if destination.Port() != s.Key.Port || contains(s.Keep, endpoint) {
		return false
	}
	if !s.isNodePort() {
		return destination.Addr() == s.Key.Addr
	}
	if !local(destination.Addr()) {
		return false
	}
	return s.AllGone || contains(s.Gone, endpoint) || endpoint == destination
}

// Plan gives the scopes in which a change of a Service can leave stale
// entries. tcp has TCP connections to endpoints that went cut off; without it
// they are left to end by themselves, and only those go that never came about.
func Plan(c model.Change, tcp bool) []Scope {
	var scopes []Scope
	before, after := frontends(c.Old), frontends(c.New)
	for key, old := range before {
		next := after[key]
		left := func(unanswered bool) (s Scope, any bool) {
			s = Scope{Key: key, Keep: keep(next, unanswered), Unanswered: unanswered}
			s.Gone = without(keep(old, unanswered), s.Keep)
			return s, next == nil || len(s.Gone) > 0
		}
		var all Scope
		var any bool
		if tcp || key.Protocol != model.TCP {
			if all, any = left(false); any {
				scopes = append(scopes, all)
			}
		}
		if key.Protocol != model.TCP {
			continue
		}
		if s, some := left(true); some && !(any && len(without(s.Gone, all.Gone)) == 0) {
			scopes = append(scopes, s)
		}
	}
	for key, f := range after {
		// What was dialled before the frontend existed was led nowhere, and where an
		// earlier process led it is not known.
		if before[key] == nil && key.Protocol != model.TCP {
			scopes = append(scopes, Scope{Key: key, Keep: keep(f, false), AllGone: key.Addr.IsUnspecified()})
		}
	}
	slices.SortStableFunc(scopes, func(a, b Scope) int { return a.Key.Compare(b.Key) })
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

// keep gives the endpoints of a frontend that flows may stay with: those that
// serve, and for flows that were never answered those that get new ones.
func keep(f *model.Frontend, unanswered bool) []netip.AddrPort {
	switch {
	case f == nil:
		return nil
	case !unanswered:
		return f.Serving
	}
	aps := addrPorts(f.Inside)
	if f.Outside != f.Inside {
		aps = union(aps, addrPorts(f.Outside))
	}
	return aps
}

func addrPorts(t *model.Target) []netip.AddrPort {
	var aps []netip.AddrPort
	for i := range t.Endpoints {
		aps = append(aps, t.Endpoints[i].AddrPort)
	}
	return aps
}

// What follows is for sorted lists: a Service may have thousands of endpoints.

func contains(aps []netip.AddrPort, ap netip.AddrPort) bool {
	_, found := slices.BinarySearchFunc(aps, ap, netip.AddrPort.Compare)
	return found
}

func union(a, b []netip.AddrPort) []netip.AddrPort {
	all := slices.Concat(a, b)
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

func without(aps, minus []netip.AddrPort) []netip.AddrPort {
	var left []netip.AddrPort
	for _, ap := range aps {
		if !contains(minus, ap) {
			left = append(left, ap)
		}
	}
	return left
}
