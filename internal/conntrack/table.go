// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// maxScopesByKernelsFilter is how many scopes get a dump each.
const maxScopesByKernelsFilter = 16

// Table is the kernel's connection tracking table in the network namespace of
// the calling thread.
type Table struct {
	// Reset has the clients of TCP flows that Clean ends answered with a reset.
	Reset bool
	// Node tells the clients of this node from others.
	Node model.Node
}

// Clean deletes the stale entries of all scopes and returns how many there were.
// Errors of single deletions are joined; the rest is done all the same. What it
// holds in memory does not depend on how many entries there are.
func (t Table) Clean(scopes []Scope) (int, error) {
	if len(scopes) == 0 {
		return 0, nil
	}
	place := newPlace(&t.Node)
	var note func([]conntrack.Entry) error
	if t.Reset {
		r := &refuser{}
		defer r.close()
		note = r.refuse // before, so that no segment passes in between
	}
	d, err := conntrack.OpenDeleter(note)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	var errs []error
	for _, g := range groups(scopes) {
		err := conntrack.List(g.filter.filter(), func(e *conntrack.Entry) error {
			if !g.stale(e, place) {
				return nil
			}
			return d.Add(e)
		})
		if err = errors.Join(err, d.Flush()); err != nil {
			errs = append(errs, fmt.Errorf("end flows to %s: %w", g.filter.Key, err))
		}
	}
	return d.Deleted(), errors.Join(errs...)
}

// filter is what the kernel is asked for.
func (s *Scope) filter() conntrack.Filter {
	return conntrack.Filter{
		Protocol: uint8(s.Key.Protocol), To: netip.AddrPortFrom(s.Key.Addr, s.Key.Port), Unreplied: s.Unanswered,
	}
}

// group is the scopes that one dump serves.
type group struct {
	fam    model.Family
	filter Scope
	byKey  map[model.Key][]Scope
}

// groups makes one dump for each scope while they are few, else one for each
// family and protocol: the kernel walks the whole table for each. Scopes of
// unanswered flows share one in any case, for there are never many of those.
func groups(scopes []Scope) []group {
	var gs []group
	type shared struct {
		all        model.Key
		unanswered bool
	}
	index := map[shared]int{}
	alone := 0
	for _, s := range scopes {
		if !s.Unanswered {
			alone++
		}
	}
	for _, s := range scopes {
		if !s.Unanswered && alone <= maxScopesByKernelsFilter {
			gs = append(gs, group{s.Key.Family(), s, map[model.Key][]Scope{s.Key: {s}}})
			continue
		}
		all := shared{model.Key{Addr: s.Key.Family().Unspecified(), Protocol: s.Key.Protocol}, s.Unanswered}
		i, ok := index[all]
		if !ok {
			i = len(gs)
			index[all] = i
			gs = append(gs, group{s.Key.Family(), Scope{Key: all.all, Unanswered: s.Unanswered}, map[model.Key][]Scope{}})
		}
		gs[i].byKey[s.Key] = append(gs[i].byKey[s.Key], s)
	}
	return gs
}

func (g *group) stale(e *conntrack.Entry, at Place) bool {
	for _, key := range [...]model.Key{
		{Addr: e.Destination.Addr(), Port: e.Destination.Port(), Protocol: model.Protocol(e.Protocol)},
		{Addr: g.fam.Unspecified(), Port: e.Destination.Port(), Protocol: model.Protocol(e.Protocol)},
	} {
		for i := range g.byKey[key] {
			s := &g.byKey[key][i]
			if !(s.Unanswered && e.Replied()) && s.Stale(e.Flow, at) {
				return true
			}
		}
	}
	return false
}
