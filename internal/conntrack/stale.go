// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
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
	// ClientsOnly leaves flows alone but those of clients that are not admitted: no
	// endpoint has gone.
	ClientsOnly bool
	// Restricted ends the flows of clients that Sources, disjoint and sorted, do not
	// contain.
	Restricted bool
	Sources    []netip.Prefix
	// ShutInside and ShutOutside, sorted, are endpoints to which a traffic policy
	// does not admit clients any more, those on this node and all others.
	ShutInside, ShutOutside []netip.AddrPort
}

// Flow is one tracked flow.
type Flow = conntrack.Flow

// Place is what tells whose flow is whose on this node.
type Place interface {
	// Local says whether an address is this node's.
	Local(netip.Addr) bool
	// Inside says whether a client is this node or a Pod of it.
	Inside(netip.Addr) bool
	// AnswersNodePorts says whether NodePorts answer on a local address.
	AnswersNodePorts(netip.Addr) bool
}

// isNodePort says that Key has no address.
func (s *Scope) isNodePort() bool { return s.Key.Addr.IsUnspecified() }

// Stale says whether an entry is to go.
func (s *Scope) Stale(f Flow, at Place) bool {
	if f.Destination.Port() != s.Key.Port {
		return false
	}
	if !s.isNodePort() {
		return f.Destination.Addr() == s.Key.Addr &&
			(!s.ClientsOnly && !contains(s.Keep, f.Endpoint) || s.excludes(f, at))
	}
	if !at.Local(f.Destination.Addr()) {
		return false
	}
	if contains(s.Keep, f.Endpoint) {
		return !at.AnswersNodePorts(f.Destination.Addr()) || s.excludes(f, at)
	}
	return !s.ClientsOnly && (s.AllGone || contains(s.Gone, f.Endpoint) || f.Endpoint == f.Destination)
}

// excludes says that the client may not use the frontend, or not this endpoint.
func (s *Scope) excludes(f Flow, at Place) bool {
	if s.Restricted && !admits(s.Sources, f.Source.Addr()) {
		return true
	}
	inside, outside := contains(s.ShutInside, f.Endpoint), contains(s.ShutOutside, f.Endpoint)
	switch {
	case inside && outside:
		return true
	case inside:
		return at.Inside(f.Source.Addr())
	}
	return outside && !at.Inside(f.Source.Addr())
}

// admits looks an address up in disjoint, sorted ranges.
func admits(sources []netip.Prefix, client netip.Addr) bool {
	i, found := slices.BinarySearchFunc(sources, client, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return found || i > 0 && sources[i-1].Contains(client)
}

// history is what a frontend was while flows may have been led by it, and what it
// is now.
type history struct {
	key model.Key
	// was has the former states, oldest first, and no nil.
	was []*model.Frontend
	// absent says that there was a time when the frontend was not there, or that it
	// is not known what it was.
	absent bool
	// is the frontend now; nil: it is gone.
	is *model.Frontend
}

// histories takes all changes together: a frontend that one Service loses and
// another gains has changed, and neither gone nor come.
func histories(changes []model.Change) map[model.Key]*history {
	hs := map[model.Key]*history{}
	of := func(key model.Key) *history {
		h := hs[key]
		if h == nil {
			h = &history{key: key}
			hs[key] = h
		}
		return h
	}
	for _, c := range changes {
		for key, f := range frontends(c.Old) {
			h := of(key)
			h.was = append(h.was, f)
		}
		for key, f := range frontends(c.New) {
			of(key).is = f
		}
	}
	for _, h := range hs {
		h.absent = len(h.was) == 0
	}
	return hs
}

// then adds what happened next.
func (h *history) then(next *history) {
	for _, f := range next.was {
		if len(h.was) == 0 || !slices.ContainsFunc(h.was, f.Equal) {
			h.was = append(h.was, f)
		}
	}
	h.absent = h.absent || next.absent || h.is == nil
	h.is = next.is
}

// Plan gives the scopes in which a change of a Service can leave stale
// entries. tcp has TCP connections cut off that lead to endpoints that went, or
// whose clients are not admitted any more; without it they are left to end by
// themselves, and only those go that never came about.
func Plan(c model.Change, tcp bool) []Scope { return PlanAll([]model.Change{c}, tcp) }

// PlanAll is Plan for changes that were made at once.
func PlanAll(changes []model.Change, tcp bool) []Scope {
	var scopes []Scope
	for _, h := range histories(changes) {
		scopes = append(scopes, h.scopes(tcp)...)
	}
	slices.SortStableFunc(scopes, func(a, b Scope) int { return a.Key.Compare(b.Key) })
	return scopes
}

func (h *history) scopes(tcp bool) []Scope {
	left := func(unanswered bool) (s Scope, any bool) {
		s = Scope{Key: h.key, Keep: keep(h.is, unanswered), Unanswered: unanswered}
		for _, old := range h.was {
			s.Gone = union(s.Gone, without(keep(old, unanswered), s.Keep))
		}
		// What was dialled while there was no frontend was led nowhere, and where an
		// earlier process led it is not known. A client by TCP repeats its SYN.
		came := h.is != nil && h.absent && (unanswered || h.key.Protocol != model.TCP)
		s.AllGone = came && len(h.was) == 0 && h.key.Addr.IsUnspecified()
		return s, h.is == nil && len(h.was) > 0 || len(s.Gone) > 0 || came
	}
	var all Scope
	var scopes []Scope
	var any bool
	if tcp || h.key.Protocol != model.TCP {
		all, any = left(false)
		if clients := h.exclude(&all); any || clients {
			all.ClientsOnly = !any
			scopes = append(scopes, all)
		}
	}
	if h.key.Protocol != model.TCP {
		return scopes
	}
	s, some := left(true)
	some = some && !(any && len(without(s.Gone, all.Gone)) == 0)
	if clients := !tcp && h.exclude(&s); some || clients {
		s.ClientsOnly = !some
		scopes = append(scopes, s)
	}
	return scopes
}

// exclude adds to s which clients are not admitted any more, and says whether
// there may be any.
func (h *history) exclude(s *Scope) bool {
	if h.is == nil {
		return false
	}
	unknown := len(h.was) == 0
	any := unknown && h.is.Kind == model.NodePort
	if h.is.Restricted {
		s.Restricted, s.Sources = true, h.is.SourceRanges
		any = any || unknown || slices.ContainsFunc(h.was, func(old *model.Frontend) bool {
			return !old.Restricted || !slices.Equal(old.SourceRanges, h.is.SourceRanges)
		})
	}
	// A policy drops what it does not admit, while others serve it. Endpoints of this
	// node that are left may still finish what they have.
	remote := func(t *model.Target) {
		for i := range t.Endpoints {
			if e := &t.Endpoints[i]; !e.Local {
				s.ShutOutside = append(s.ShutOutside, e.AddrPort)
			}
		}
	}
	if h.is.Outside.Action == model.Drop {
		for _, old := range h.was {
			remote(old.Inside)
			remote(old.Outside)
		}
		remote(h.is.Inside)
		s.ShutOutside = union(s.ShutOutside, nil)
		if h.is.Inside.Action == model.Drop {
			s.ShutInside = s.ShutOutside
		}
	}
	dropped := slices.ContainsFunc(h.was, func(old *model.Frontend) bool {
		return old.Outside.Action == model.Forward || h.is.Inside.Action == model.Drop && old.Inside.Action == model.Forward
	})
	return any || len(s.ShutOutside) > 0 && (unknown || dropped)
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
