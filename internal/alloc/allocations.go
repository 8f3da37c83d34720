// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"slices"
	"time"
)

// Allocations knows which owner has which value of one kind. It is not safe for
// concurrent use.
type Allocations[V comparable] struct {
	kind        Kind[V]
	allocations map[V][]Allocation[V]
	held        map[Owner][]V  // the values of Held allocations, as observed
	booked      map[V]struct{} // see SetBooked
	pools       map[string]*pool[V]
	places      places[V]
	ends        deadlines[V]
	memory      memory[V]
}

// New returns Allocations without pools or owners.
func New[V comparable](kind Kind[V]) *Allocations[V] {
	return &Allocations[V]{
		kind:        kind,
		allocations: map[V][]Allocation[V]{},
		held:        map[Owner][]V{},
		booked:      map[V]struct{}{},
		pools:       map[string]*pool[V]{},
		memory:      newMemory[V](),
	}
}

// SetPool adds a pool, or replaces the one of that name. Allocations
// stay: a value that is no longer in any pool stays with its owner. Its cost
// is one step for each allocation.
func (l *Allocations[V]) SetPool(spec Pool[V]) {
	p := newPool(l.kind, spec)
	l.pools[spec.Name] = p
	l.places = newPlaces(l.kind, l.pools)
	for v, allocations := range l.allocations {
		if _, ok := p.index(v); !ok {
			continue
		}
		p.moved(v, Free, strongest(allocations))
		for _, allocation := range allocations {
			if allocation.State >= Pending {
				p.perNamespace[allocation.Owner.Namespace]++
			}
		}
	}
}

// DeletePool forgets a pool; absent is not an error. Allocations stay.
func (l *Allocations[V]) DeletePool(name string) {
	delete(l.pools, name)
	l.places = newPlaces(l.kind, l.pools)
}

// Ask is the owner that wants a value, and the outside world as it is now.
type Ask struct {
	Owner Owner
	Now   time.Time
	// PendingFor is how long the value is pending for its owner before it is free again,
	// unless Observe sees it.
	PendingFor time.Duration
	// SuspectFor is how long the value is Suspect after that.
	SuspectFor time.Duration
	// Random is 64 evenly distributed bits.
	Random uint64
	// Epoch says which leaders' grants this one must not meet.
	Epoch Epoch
}

// Next picks a free value of the pool at random, from above the lower band
// while there is one; an unverified one when there is none, and a suspect one when
// there are none of these either. It returns ErrNoPool, ErrFull or ErrQuota.
func (l *Allocations[V]) Next(name string, ask Ask) (V, error) {
	var none V
	l.Expire(ask.Now)
	p, ok := l.pools[name]
	if !ok {
		return none, ErrNoPool
	}
	if err := p.full(ask.Owner); err != nil && !l.reclaim(p, ask, ask.Owner.Namespace) {
		return none, err
	}
	v, ok := p.free(ask)
	if !ok {
		v, ok = l.oldestSuspect(p)
	}
	if !ok && l.reclaim(p, ask, "") {
		if v, ok = p.free(ask); !ok {
			v, ok = l.oldestSuspect(p)
		}
	}
	if !ok {
		return none, &FullError{Pool: name, Stats: p.stats(), Next: l.nextEnd(p)}
	}
	l.pick(v, ask)
	return v, nil
}

// reclaimAfter is the age at which a pending value that no Service was seen with is
// reclaimed if its pool or its namespace has none left. A request that takes longer may
// find its value granted to another: the API server, which books each value once, denies
// the later one.
const reclaimAfter = 2 * time.Second

// reclaim ends the oldest pending allocation of the pool, of the namespace that
// has most of these, or of the one given. It returns false when none is old
// enough. So a client that requests many values and never stores Services blocks a pool no
// longer than that.
func (l *Allocations[V]) reclaim(p *pool[V], ask Ask, namespace string) bool {
	if p.counts[Pending] == 0 {
		return false
	}
	stale := map[string]int{}
	oldest := map[string]Allocation[V]{}
	seen := map[V]bool{}
	for _, end := range l.ends.queue {
		if seen[end.value] || !p.gives(end.value) {
			continue
		}
		seen[end.value] = true
		for _, allocation := range l.allocations[end.value] {
			of := allocation.Owner.Namespace
			if allocation.State != Pending || allocation.Owner.Is(ask.Owner) || namespace != "" && of != namespace || ask.Now.Sub(allocation.Since) < reclaimAfter {
				continue
			}
			stale[of]++
			if old, ok := oldest[of]; !ok || allocation.Since.Before(old.Since) || allocation.Since.Equal(old.Since) && l.kind.Compare(allocation.Value, old.Value) < 0 {
				oldest[of] = allocation
			}
		}
	}
	most := ""
	for of, n := range stale {
		if most == "" || n > stale[most] || n == stale[most] && of < most {
			most = of
		}
	}
	if len(stale) == 0 {
		return false
	}
	reclaimed := oldest[most]
	l.cut(reclaimed.Value, func(allocation Allocation[V]) bool {
		return allocation.State == Pending && allocation.Owner == reclaimed.Owner
	})
	return true
}

// nextEnd is when the first pending or quarantined value of the pool is free again;
// zero when there is none.
func (l *Allocations[V]) nextEnd(p *pool[V]) (first time.Time) {
	for _, end := range l.ends.queue {
		allocations := l.allocations[end.value]
		if state := strongest(allocations); state != Pending && state != Quarantined || !p.has(end.value) {
			continue
		}
		var last time.Time
		for _, allocation := range allocations {
			if allocation.State >= Quarantined {
				last = later(last, allocation.Until)
			}
		}
		if first.IsZero() || last.Before(first) {
			first = last
		}
	}
	return first
}

// Take picks a certain value, in a pool or not. It returns ErrTaken when
// another owner holds it or it is pending for one, and ErrQuota when a pool that it
// is in says so. A quarantined value is granted to any owner that asks for it.
// Taking a value that the owner has is no error and changes nothing.
func (l *Allocations[V]) Take(v V, ask Ask) error {
	l.Expire(ask.Now)
	var err error
	for _, allocation := range l.allocations[v] {
		switch {
		case allocation.State < Pending:
		case allocation.Owner.Is(ask.Owner):
			if allocation.State == Pending { // pending for as long as the last request says
				l.cut(v, func(allocation Allocation[V]) bool { return allocation.State == Pending })
				l.pick(v, ask)
			}
			return nil
		default:
			err = &TakenError{Value: l.kind.Format(v), Owner: allocation.Owner, State: allocation.State}
		}
	}
	if err != nil {
		return err
	}
	l.places.each(l.kind, v, func(p *pool[V]) {
		if e := p.full(ask.Owner); e != nil {
			err = e
		}
	})
	if err == nil {
		l.pick(v, ask)
	}
	return err
}

func (l *Allocations[V]) pick(v V, ask Ask) {
	until := ask.Now.Add(ask.PendingFor)
	novel := l.memory.add(ask.Owner, v)
	l.put(Allocation[V]{Value: v, Owner: ask.Owner, State: Pending, Since: ask.Now, Until: until, novel: novel, suspectFor: ask.SuspectFor})
	l.ends.add(until, v)
}

// Drop ends a pending allocation that its owner does not want after all. The value
// is as before, and so is what the owner is remembered to have had.
func (l *Allocations[V]) Drop(v V, owner Owner) {
	l.cut(v, func(allocation Allocation[V]) bool {
		undone := allocation.State == Pending && allocation.Owner.Is(owner)
		if undone && allocation.novel {
			l.memory.drop(owner, v)
		}
		return undone
	})
}

// Deny ends a pending allocation that its owner cannot have, because the value is
// booked. A later Service of the owner's name has no right to it either; others are
// kept from it as before.
func (l *Allocations[V]) Deny(v V, owner Owner) {
	l.Drop(v, owner)
	l.memory.drop(owner, v)
	l.SetBooked(v, true)
}

// Observe says what the owner has according to the API: these values and no
// others. That ends what was pending for any owner. Values that it no longer has
// are quarantined. Equal calls change nothing.
func (l *Allocations[V]) Observe(owner Owner, values []V, now time.Time) {
	l.Expire(now) // no request may ever reach this process
	before := l.held[owner]
	if slices.Equal(before, values) {
		return
	}
	for i, v := range values {
		if slices.Contains(before, v) || slices.Contains(values[:i], v) {
			continue
		}
		l.cut(v, func(allocation Allocation[V]) bool { return allocation.State != Held })
		l.put(Allocation[V]{Value: v, Owner: owner, State: Held, Since: now})
	}
	for _, v := range before {
		if !slices.Contains(values, v) {
			l.memory.set(owner, before)
			l.release(v, owner, now)
		}
	}
	if len(values) == 0 {
		delete(l.held, owner)
		return
	}
	l.held[owner] = slices.Clone(values)
}

// Forget says that the owner is gone. Its values are quarantined.
func (l *Allocations[V]) Forget(owner Owner, now time.Time) { l.Observe(owner, nil, now) }

// Quarantine says that a value is quarantined until then, as a record of an earlier
// process has it. A value that an owner has stays as it is.
func (l *Allocations[V]) Quarantine(v V, owner Owner, since, until time.Time) {
	if strongest(l.allocations[v]) > Suspect {
		return
	}
	l.memory.add(owner, v)
	l.quarantine(v, owner, since, until, 0)
}

func (l *Allocations[V]) quarantine(v V, owner Owner, since, until time.Time, suspectFor time.Duration) {
	l.put(Allocation[V]{Value: v, Owner: owner, State: Quarantined, Since: since, Until: until, suspectFor: suspectFor})
	l.ends.add(until, v)
}

// release ends a Held allocation, quarantines the value for as long as its pools
// say, and makes it suspect for what is left of the lag.
func (l *Allocations[V]) release(v V, owner Owner, now time.Time) {
	l.cut(v, func(allocation Allocation[V]) bool { return allocation.State == Held && allocation.Owner == owner })
	if strongest(l.allocations[v]) > Suspect {
		return // another owner has it, too
	}
	var quarantine time.Duration
	l.places.each(l.kind, v, func(p *pool[V]) { quarantine = max(quarantine, p.Quarantine) })
	if quarantine == 0 {
		l.suspect(Allocation[V]{Value: v, Owner: owner, Since: now, Until: now.Add(lag), verifiable: now})
		return
	}
	l.quarantine(v, owner, now, now.Add(quarantine), max(0, lag-quarantine))
}

// lag is how long a released value is suspect, as far as it is not quarantined: the API
// server reports a deleted Service before it releases its values, which takes seconds under
// load.
const lag = 10 * time.Second

// flight is how long a request can be in flight after it was granted a value, by the API
// server's timeout. Until then a value that is not in use may come into use.
const flight = time.Minute

// Expire ends what is pending or quarantined and whose time is up. The methods that choose and
// Observe do so themselves.
func (l *Allocations[V]) Expire(now time.Time) {
	for {
		v, ok := l.ends.pop(now)
		if !ok {
			return
		}
		var over []Allocation[V]
		l.cut(v, func(allocation Allocation[V]) bool {
			if allocation.State == Held || allocation.Until.After(now) {
				return false
			}
			over = append(over, allocation)
			return true
		})
		for _, allocation := range over {
			if allocation.suspectFor == 0 {
				continue
			}
			allocation.verifiable = allocation.Until
			if allocation.State == Pending {
				allocation.Owner = Owner{} // no Service was seen with it
				allocation.verifiable = later(allocation.Until, allocation.Since.Add(flight))
			}
			allocation.Since, allocation.Until = allocation.Until, allocation.Until.Add(allocation.suspectFor)
			if allocation.Until.After(now) {
				l.suspect(allocation)
			}
		}
	}
}

// put adds an allocation.
func (l *Allocations[V]) put(allocation Allocation[V]) {
	before := l.allocations[allocation.Value]
	after := append(before, allocation)
	l.allocations[allocation.Value] = after
	l.changed(allocation.Value, strongest(before), after, allocation, 1)
}

// cut ends the allocations of a value that match.
func (l *Allocations[V]) cut(v V, match func(Allocation[V]) bool) {
	for i := 0; i < len(l.allocations[v]); {
		allocation := l.allocations[v][i]
		if !match(allocation) {
			i++
			continue
		}
		from := strongest(l.allocations[v])
		after := slices.Delete(l.allocations[v], i, i+1)
		if l.allocations[v] = after; len(after) == 0 {
			delete(l.allocations, v)
		}
		l.changed(v, from, after, allocation, -1)
	}
	l.keepBooked(v)
}

// changed brings everything that is computed from the allocations up to date.
func (l *Allocations[V]) changed(v V, from State, allocations []Allocation[V], allocation Allocation[V], by int) {
	to := strongest(allocations)
	l.places.each(l.kind, v, func(p *pool[V]) {
		if _, ok := p.index(v); !ok {
			return
		}
		p.moved(v, from, to)
		if allocation.State >= Pending {
			if p.perNamespace[allocation.Owner.Namespace] += by; p.perNamespace[allocation.Owner.Namespace] == 0 {
				delete(p.perNamespace, allocation.Owner.Namespace)
			}
		}
	})
}

func strongest[V comparable](allocations []Allocation[V]) State {
	state := Free
	for _, allocation := range allocations {
		state = max(state, allocation.State)
	}
	return state
}
