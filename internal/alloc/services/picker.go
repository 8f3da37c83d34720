// SPDX-License-Identifier: Apache-2.0

package services

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// picker serves one request from one kind of value.
type picker[V comparable] struct {
	*admission
	*values[V]
	field string
}

func (p *picker[V]) ask() alloc.Ask {
	ask := alloc.Ask{Owner: p.who.owner, Now: p.req.Now, PendingFor: p.config.PendingFor, Random: p.req.Random(), Epoch: p.req.Epoch}
	if p.req.Old != nil || p.unrecorded {
		ask.SuspectFor = suspectFor
	}
	return ask
}

func (p *picker[V]) deny(reason Reason, format string, args ...any) *Denied {
	return &Denied{Reason: reason, Field: p.field, Detail: fmt.Sprintf(format, args...)}
}

// take picks the value that the Service asks for.
func (p *picker[V]) take(v V) error {
	text := p.kind.Format(v)
	owners, selected := p.having(v, p.who)
	if len(owners) > 0 && !selected {
		return p.deny(Foreign, "%s belongs to %s %s, which does not select this Service: leave the field empty, or ask an administrator to select the namespace or the Service's labels",
			text, p.resource, strings.Join(owners, ", "))
	}
	if mine := p.serving(p.who); len(owners) == 0 && len(mine) > 0 {
		return p.deny(Outside, "%s is not in %s %s, which serves this Service: leave the field empty, or choose a value from there",
			text, p.resource, strings.Join(mine, ", "))
	}
	if names := p.reserving(v); len(names) > 0 && !p.Mine(v, p.who.owner) {
		return p.deny(Reserved, "%s is reserved in %s %s: leave the field empty, or choose another value", text, p.resource, strings.Join(names, ", "))
	}
	return p.pick(v)
}

// pick takes a value and remembers how to undo it.
func (p *picker[V]) pick(v V) error {
	had := p.Mine(v, p.who.owner)
	p.given = append(p.given, p.kind.Format(v))
	err := p.Take(v, p.ask())
	var taken *alloc.TakenError
	switch {
	case errors.As(err, &taken):
		denied := p.deny(Taken, "%s is %s by %s: leave the field empty, or choose another value", taken.Value, taken.State, toldOf(taken.Owner, p.who.owner))
		denied.Holder = taken.Owner
		return denied
	case err != nil:
		return p.deny(Quota, "%v: delete Services that are not needed, or ask an administrator to raise maxPerNamespace", err)
	case !had:
		p.undo = append(p.undo, func() { p.Drop(v, p.who.owner) })
	}
	return nil
}

// toldOf names a Service to another, which is not told of those of other
// namespaces.
func toldOf(o, to alloc.Owner) string {
	if o.Namespace != to.Namespace {
		return "a Service of another namespace"
	}
	return "Service " + o.String()
}

// choose picks any value, and reports whether the Service had it before. It
// returns false when there is nothing to choose from, so that the API server
// has to.
func (p *picker[V]) choose() (v V, former, ok bool, err error) {
	if len(p.list) == 0 {
		return v, false, false, nil
	}
	names := p.serving(p.who)
	if len(names) == 0 {
		names = []string{remainder}
	}
	if v, ok := p.again(names); ok {
		return v, true, true, nil
	}
	var reasons []string
	reason := Full
	for _, name := range names {
		v, err := p.Next(name, p.ask())
		switch {
		case err == nil:
			p.undo = append(p.undo, func() { p.Drop(v, p.who.owner) })
			return v, false, true, nil
		case errors.Is(err, alloc.ErrNoPool):
			continue // the remainder of a cluster whose ranges are not known
		case errors.Is(err, alloc.ErrQuota):
			reason = Quota
		}
		reasons = append(reasons, err.Error())
	}
	if len(reasons) == 0 {
		return v, false, false, nil
	}
	return v, false, false, p.deny(reason, "no %s to give: %s: delete Services that are not needed, or ask an administrator to enlarge the %s",
		p.kind.Name, strings.Join(reasons, "; "), p.resource)
}

// again picks a value that a Service of this name had before and that is free,
// or that an earlier try of this request was granted.
func (p *picker[V]) again(pools []string) (v V, ok bool) {
	for _, v := range slices.Clone(p.Remembers(p.who.owner)) {
		inPool := slices.ContainsFunc(p.PoolsOf(v), func(name string) bool { return slices.Contains(pools, name) })
		if inPool && !p.used(v) && p.mayReuse(v) && len(p.reserving(v)) == 0 && p.pick(v) == nil {
			return v, true
		}
	}
	return v, false
}

// used reports whether the Service has the value already: what is known of it may
// be behind.
func (p *picker[V]) used(v V) bool { return slices.Contains(p.given, p.kind.Format(v)) }

// mayReuse reports whether a value that this name had may be granted to it once
// more. What another Service had since is quarantined for this one, too. A pending
// value that was not seen may be when the Service is created again and the caller
// can look whether it is booked, as it can for addresses; not for an update, see
// suspectFor.
func (p *picker[V]) mayReuse(v V) bool {
	lost, own := false, false
	for _, allocation := range p.Of(v) {
		mine := allocation.Owner.Namespace == p.who.owner.Namespace && allocation.Owner.Name == p.who.owner.Name
		switch {
		case allocation.State == alloc.Held, allocation.State == alloc.Quarantined && !mine:
			return false
		case allocation.State == alloc.Pending && (p.unrecorded || p.req.Old != nil || p.req.Now.Sub(allocation.Since) < concurrent):
			return false
		case allocation.State <= alloc.Suspect && !mine:
			lost = true
		}
		own = own || mine
	}
	return !lost || own && !p.unrecorded
}

func (p *picker[V]) quarantined(v V) bool {
	return slices.ContainsFunc(p.Of(v), func(a alloc.Allocation[V]) bool { return a.State == alloc.Quarantined })
}
