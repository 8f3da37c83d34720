// SPDX-License-Identifier: Apache-2.0

package book

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// where returns the names of the pools that have the value, and whether one of
// them selects the Service.
func where[V comparable](kind alloc.Kind[V], policies []policy, spans func(policy) []alloc.Span[V], v V, who subject) (names []string, mine bool) {
	for _, p := range policies {
		if !slices.ContainsFunc(spans(p), func(s alloc.Span[V]) bool { return kind.Contains(s, v) }) {
			continue
		}
		names = append(names, p.name)
		mine = mine || p.selects(who)
	}
	return names, mine
}

// counter serves one request from one ledger.
type counter[V comparable] struct {
	*desk
	ledger          *alloc.Ledger[V]
	kind            alloc.Kind[V]
	resource, field string
	policies        []policy
	spans, reserved func(policy) []alloc.Span[V]
}

func (c *counter[V]) ask() alloc.Ask {
	ask := alloc.Ask{Owner: c.who.owner, Now: c.req.Now, Hold: c.config.Hold, Random: c.req.Random(), Turn: c.req.Turn}
	if c.req.Old != nil || c.reserved != nil {
		ask.Doubt = doubt
	}
	return ask
}

func (c *counter[V]) refuse(reason Reason, format string, args ...any) *Refused {
	return &Refused{Reason: reason, Field: c.field, Detail: fmt.Sprintf(format, args...)}
}

// mine returns the names of the pools of this kind that select the Service, in
// the order in which they are asked.
func (c *counter[V]) mine() []string {
	var out []string
	for _, p := range c.policies {
		if len(c.spans(p)) > 0 && p.selects(c.who) {
			out = append(out, p.name)
		}
	}
	return out
}

// take picks the value that the Service asks for.
func (c *counter[V]) take(v V) error {
	text := c.kind.Format(v)
	owners, selected := where(c.kind, c.policies, c.spans, v, c.who)
	if len(owners) > 0 && !selected {
		return c.refuse(Foreign, "%s belongs to %s %s, which does not select this Service: leave the field empty, or ask an administrator to select the namespace or the Service's labels",
			text, c.resource, strings.Join(owners, ", "))
	}
	if mine := c.mine(); len(owners) == 0 && len(mine) > 0 {
		return c.refuse(Outside, "%s is not in %s %s, which serves this Service: leave the field empty, or choose a value from there",
			text, c.resource, strings.Join(mine, ", "))
	}
	if c.reserved != nil {
		if pools, _ := where(c.kind, c.policies, c.reserved, v, c.who); len(pools) > 0 && !c.ledger.Mine(v, c.who.owner) {
			return c.refuse(Reserved, "%s is reserved in %s %s: leave the field empty, or choose another value", text, c.resource, strings.Join(pools, ", "))
		}
	}
	return c.pick(v)
}

// pick takes a value and remembers how to undo it.
func (c *counter[V]) pick(v V) error {
	had := c.ledger.Mine(v, c.who.owner)
	c.given = append(c.given, c.kind.Format(v))
	err := c.ledger.Take(v, c.ask())
	var taken *alloc.TakenError
	switch {
	case errors.As(err, &taken):
		refused := c.refuse(Taken, "%s is %s by %s: leave the field empty, or choose another value", taken.Value, taken.State, toldOf(taken.Owner, c.who.owner))
		refused.Holder = taken.Owner
		return refused
	case err != nil:
		return c.refuse(Quota, "%v: delete Services that are not needed, or ask an administrator to raise maxPerNamespace", err)
	case !had:
		c.undo = append(c.undo, func() { c.ledger.Drop(v, c.who.owner) })
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

// choose picks any value, and tells whether the Service had it before. It
// returns false when there is nothing to choose from, so that the API server
// has to.
func (c *counter[V]) choose() (v V, former, ok bool, err error) {
	if len(c.policies) == 0 {
		return v, false, false, nil
	}
	names := c.mine()
	if len(names) == 0 {
		names = []string{rest}
	}
	if v, ok := c.again(names); ok {
		return v, true, true, nil
	}
	var reasons []string
	reason := Full
	for _, name := range names {
		v, err := c.ledger.Next(name, c.ask())
		switch {
		case err == nil:
			c.undo = append(c.undo, func() { c.ledger.Drop(v, c.who.owner) })
			return v, false, true, nil
		case errors.Is(err, alloc.ErrNoPool):
			continue // the rest of a cluster whose ranges are not known
		case errors.Is(err, alloc.ErrQuota):
			reason = Quota
		}
		reasons = append(reasons, err.Error())
	}
	if len(reasons) == 0 {
		return v, false, false, nil
	}
	return v, false, false, c.refuse(reason, "no %s to give: %s: delete Services that are not needed, or ask an administrator to enlarge the %s",
		c.kind.Name, strings.Join(reasons, "; "), c.resource)
}

// again picks a value that a Service of this name had before and that is free,
// or that an earlier try of this request was granted.
func (c *counter[V]) again(pools []string) (v V, ok bool) {
	for _, v := range slices.Clone(c.ledger.Remembers(c.who.owner)) {
		inPool := slices.ContainsFunc(c.ledger.PoolsOf(v), func(name string) bool { return slices.Contains(pools, name) })
		if inPool && !c.used(v) && c.mayReuse(v) && !c.reservedNow(v) && c.pick(v) == nil {
			return v, true
		}
	}
	return v, false
}

// used tells whether the Service has the value already: the book may be behind.
func (c *counter[V]) used(v V) bool { return slices.Contains(c.given, c.kind.Format(v)) }

// mayReuse tells whether a value that this name had may be given to it once
// more. What another Service had since rests for this one, too. A pick that was
// not seen may be when the Service is created again and the caller can look
// whether it is booked, as it can for addresses; not for an update, see doubt.
func (c *counter[V]) mayReuse(v V) bool {
	ports, lost, own := c.reserved != nil, false, false
	for _, lease := range c.ledger.Leases(v) {
		mine := lease.Owner.Namespace == c.who.owner.Namespace && lease.Owner.Name == c.who.owner.Name
		switch {
		case lease.State == alloc.Held, lease.State == alloc.Resting && !mine:
			return false
		case lease.State == alloc.Picked && (ports || c.req.Old != nil || c.req.Now.Sub(lease.Since) < concurrent):
			return false
		case lease.State <= alloc.Doubted && !mine:
			lost = true
		}
		own = own || mine
	}
	return !lost || own && !ports
}

func (c *counter[V]) reservedNow(v V) bool {
	if c.reserved == nil {
		return false
	}
	pools, _ := where(c.kind, c.policies, c.reserved, v, c.who)
	return len(pools) > 0
}

func resting[V comparable](ledger *alloc.Ledger[V], v V) bool {
	return slices.ContainsFunc(ledger.Leases(v), func(l alloc.Lease[V]) bool { return l.State == alloc.Resting })
}
