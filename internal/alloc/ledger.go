// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"slices"
	"time"
)

// Ledger knows who has which value of one kind. It is not safe for concurrent
// use.
type Ledger[V comparable] struct {
	kind   Kind[V]
	leases map[V][]Lease[V]
	held   map[Owner][]V // the values of Held leases, as observed
	twice  map[V]struct{}
	booked map[V]struct{} // see Booked
	pools  map[string]*pool[V]
	places places[V]
	ends   deadlines[V]
	memory memory[V]
}

// NewLedger returns a ledger without pools or leases.
func NewLedger[V comparable](kind Kind[V]) *Ledger[V] {
	return &Ledger[V]{
		kind:   kind,
		leases: map[V][]Lease[V]{},
		held:   map[Owner][]V{},
		twice:  map[V]struct{}{},
		booked: map[V]struct{}{},
		pools:  map[string]*pool[V]{},
		memory: newMemory[V](),
	}
}

// SetPool adds a pool, or replaces the one of that name. Leases are not
// touched: a value that is no longer in any pool stays with its owner. Its cost
// is one step for each lease.
func (l *Ledger[V]) SetPool(spec Pool[V]) {
	p := newPool(l.kind, spec)
	l.pools[spec.Name] = p
	l.places = newPlaces(l.kind, l.pools)
	for v, leases := range l.leases {
		if _, ok := p.index(v); !ok {
			continue
		}
		p.moved(v, Free, strongest(leases))
		for _, lease := range leases {
			if lease.State >= Picked {
				p.perName[lease.Owner.Namespace]++
			}
		}
	}
}

// DeletePool forgets a pool; absent is not an error. Leases are not touched.
func (l *Ledger[V]) DeletePool(name string) {
	delete(l.pools, name)
	l.places = newPlaces(l.kind, l.pools)
}

// Ask is who wants a value, and the outside world as it is now.
type Ask struct {
	Owner Owner
	Now   time.Time
	// Hold is how long a pick is kept for its owner before it is free again,
	// unless Observe sees it.
	Hold time.Duration
	// Doubt is how long the pick is Doubted after that.
	Doubt time.Duration
	// Random is 64 evenly distributed bits.
	Random uint64
	// Turn says whose grants this one must not meet.
	Turn Turn
}

// Next picks a free value of the pool at random, from above the lower band
// while there is one; an unproven one when there is none, and a doubted one when
// there are none of these either. It returns ErrNoPool, ErrFull or ErrQuota.
func (l *Ledger[V]) Next(name string, ask Ask) (V, error) {
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
		v, ok = l.doubtedFirst(p)
	}
	if !ok && l.reclaim(p, ask, "") {
		if v, ok = p.free(ask); !ok {
			v, ok = l.doubtedFirst(p)
		}
	}
	if !ok {
		return none, &FullError{Pool: name, Stats: p.stats(), Next: l.nextEnd(p)}
	}
	l.pick(v, ask)
	return v, nil
}

// ghostAfter is how old a pick is that no Service was seen with when it is taken
// back because its pool or its namespace has none left. A request that takes that
// long may then find its value given to another: the API server, which books each
// value once, refuses the later one.
const ghostAfter = 2 * time.Second

// reclaim ends the oldest pick of the pool that no Service was seen with, of the
// namespace that has most of these, or of the one given. It returns false when
// there is none that is old enough. Whoever asks for much that he never stores
// keeps a pool from others no longer than that.
func (l *Ledger[V]) reclaim(p *pool[V], ask Ask, namespace string) bool {
	if p.counts[Picked] == 0 {
		return false
	}
	ghosts := map[string]int{}
	oldest := map[string]Lease[V]{}
	seen := map[V]bool{}
	for _, end := range l.ends.queue {
		if seen[end.value] || !p.gives(end.value) {
			continue
		}
		seen[end.value] = true
		for _, lease := range l.leases[end.value] {
			of := lease.Owner.Namespace
			if lease.State != Picked || lease.Owner.same(ask.Owner) || namespace != "" && of != namespace || ask.Now.Sub(lease.Since) < ghostAfter {
				continue
			}
			ghosts[of]++
			if old, ok := oldest[of]; !ok || lease.Since.Before(old.Since) || lease.Since.Equal(old.Since) && l.kind.Compare(lease.Value, old.Value) < 0 {
				oldest[of] = lease
			}
		}
	}
	most := ""
	for of, n := range ghosts {
		if most == "" || n > ghosts[most] || n == ghosts[most] && of < most {
			most = of
		}
	}
	if len(ghosts) == 0 {
		return false
	}
	ghost := oldest[most]
	l.cut(ghost.Value, func(lease Lease[V]) bool { return lease.State == Picked && lease.Owner == ghost.Owner })
	return true
}

// nextEnd is when the first value of the pool that is picked or rests is free
// again; zero when there is none.
func (l *Ledger[V]) nextEnd(p *pool[V]) (first time.Time) {
	for _, end := range l.ends.queue {
		leases := l.leases[end.value]
		if state := strongest(leases); state != Picked && state != Resting || !p.has(end.value) {
			continue
		}
		var last time.Time
		for _, lease := range leases {
			if lease.State >= Resting {
				last = later(last, lease.Until)
			}
		}
		if first.IsZero() || last.Before(first) {
			first = last
		}
	}
	return first
}

// Take picks a certain value, in a pool or not. It returns ErrTaken when
// another owner holds or picked it, and ErrQuota when a pool that it is in says
// so. A value that rests is given to anyone who asks for it. Taking what one
// has is no error and changes nothing.
func (l *Ledger[V]) Take(v V, ask Ask) error {
	l.Expire(ask.Now)
	var err error
	for _, lease := range l.leases[v] {
		switch {
		case lease.State < Picked:
		case lease.Owner.same(ask.Owner):
			if lease.State == Picked { // a pick is good for as long as the last one says
				l.cut(v, func(lease Lease[V]) bool { return lease.State == Picked })
				l.pick(v, ask)
			}
			return nil
		default:
			err = &TakenError{Value: l.kind.Format(v), Owner: lease.Owner, State: lease.State}
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

func (l *Ledger[V]) pick(v V, ask Ask) {
	until := ask.Now.Add(ask.Hold)
	novel := l.memory.add(ask.Owner, v)
	l.put(Lease[V]{Value: v, Owner: ask.Owner, State: Picked, Since: ask.Now, Until: until, novel: novel, doubt: ask.Doubt})
	l.ends.add(until, v)
}

// Drop undoes a pick that its owner does not want after all. The value is what
// it was before, and so is what the owner is remembered to have had.
func (l *Ledger[V]) Drop(v V, owner Owner) {
	l.cut(v, func(lease Lease[V]) bool {
		undone := lease.State == Picked && lease.Owner.same(owner)
		if undone && lease.novel {
			l.memory.drop(owner, v)
		}
		return undone
	})
}

// Deny undoes a pick that its owner cannot have, because the value is booked. A
// later Service of the owner's name has no claim to it either; strangers are
// kept from it as before.
func (l *Ledger[V]) Deny(v V, owner Owner) {
	l.Drop(v, owner)
	l.memory.drop(owner, v)
	l.Booked(v, true)
}

// Observe says what the owner has according to the API: these values and no
// others. Picks of these values, by whomever, are settled by that. Values that
// it no longer has go to rest. Equal calls change nothing.
func (l *Ledger[V]) Observe(owner Owner, values []V, now time.Time) {
	l.Expire(now) // nobody may ever ask this ledger for a value
	before := l.held[owner]
	if slices.Equal(before, values) {
		return
	}
	for i, v := range values {
		if slices.Contains(before, v) || slices.Contains(values[:i], v) {
			continue
		}
		l.cut(v, func(lease Lease[V]) bool { return lease.State != Held })
		l.put(Lease[V]{Value: v, Owner: owner, State: Held, Since: now})
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

// Forget says that the owner is gone. Its values go to rest.
func (l *Ledger[V]) Forget(owner Owner, now time.Time) { l.Observe(owner, nil, now) }

// Rest says that a value rests until then, as a record of an earlier process
// tells. A value that somebody has is left as it is.
func (l *Ledger[V]) Rest(v V, owner Owner, since, until time.Time) {
	if strongest(l.leases[v]) > Doubted {
		return
	}
	l.memory.add(owner, v)
	l.rest(v, owner, since, until, 0)
}

func (l *Ledger[V]) rest(v V, owner Owner, since, until time.Time, doubt time.Duration) {
	l.put(Lease[V]{Value: v, Owner: owner, State: Resting, Since: since, Until: until, doubt: doubt})
	l.ends.add(until, v)
}

// release ends a Held lease and lets the value rest as long as the pools that
// have it say, and be doubted for the rest of the lag.
func (l *Ledger[V]) release(v V, owner Owner, now time.Time) {
	l.cut(v, func(lease Lease[V]) bool { return lease.State == Held && lease.Owner == owner })
	if strongest(l.leases[v]) > Doubted {
		return // somebody else's, too
	}
	var rest time.Duration
	l.places.each(l.kind, v, func(p *pool[V]) { rest = max(rest, p.Quarantine) })
	if rest == 0 {
		l.doubt(Lease[V]{Value: v, Owner: owner, Since: now, Until: now.Add(lag), settled: now})
		return
	}
	l.rest(v, owner, now, now.Add(rest), max(0, lag-rest))
}

// lag is how long a released value is doubted, as far as it does not rest: the
// API server tells of a deleted Service before it frees what that had, which
// takes seconds when it has much to do.
const lag = 10 * time.Second

// flight is how long a request can be on its way after its pick: the API server
// gives it no longer. Until then a value may come into use though it is not.
const flight = time.Minute

// Expire ends the picks and rests whose time is up. The methods that choose and
// Observe do so themselves.
func (l *Ledger[V]) Expire(now time.Time) {
	for {
		v, ok := l.ends.pop(now)
		if !ok {
			return
		}
		var over []Lease[V]
		l.cut(v, func(lease Lease[V]) bool {
			if lease.State == Held || lease.Until.After(now) {
				return false
			}
			over = append(over, lease)
			return true
		})
		for _, lease := range over {
			if lease.doubt == 0 {
				continue
			}
			lease.settled = lease.Until
			if lease.State == Picked {
				lease.Owner = Owner{} // nobody was seen to have it
				lease.settled = later(lease.Until, lease.Since.Add(flight))
			}
			lease.Since, lease.Until = lease.Until, lease.Until.Add(lease.doubt)
			if lease.Until.After(now) {
				l.doubt(lease)
			}
		}
	}
}

// put adds a lease.
func (l *Ledger[V]) put(lease Lease[V]) {
	before := l.leases[lease.Value]
	after := append(before, lease)
	l.leases[lease.Value] = after
	l.changed(lease.Value, strongest(before), after, lease, 1)
}

// cut ends the leases of a value that match.
func (l *Ledger[V]) cut(v V, match func(Lease[V]) bool) {
	for i := 0; i < len(l.leases[v]); {
		lease := l.leases[v][i]
		if !match(lease) {
			i++
			continue
		}
		from := strongest(l.leases[v])
		after := slices.Delete(l.leases[v], i, i+1)
		if l.leases[v] = after; len(after) == 0 {
			delete(l.leases, v)
		}
		l.changed(v, from, after, lease, -1)
	}
	l.mindBooked(v)
}

// changed brings everything that is computed from the leases up to date.
func (l *Ledger[V]) changed(v V, from State, leases []Lease[V], lease Lease[V], by int) {
	to := strongest(leases)
	l.places.each(l.kind, v, func(p *pool[V]) {
		if _, ok := p.index(v); !ok {
			return
		}
		p.moved(v, from, to)
		if lease.State >= Picked {
			if p.perName[lease.Owner.Namespace] += by; p.perName[lease.Owner.Namespace] == 0 {
				delete(p.perName, lease.Owner.Namespace)
			}
		}
	})
	if lease.State != Held {
		return
	}
	holders := 0
	for _, other := range leases {
		if other.State == Held {
			holders++
		}
	}
	if holders > 1 {
		l.twice[v] = struct{}{}
	} else {
		delete(l.twice, v)
	}
}

func strongest[V comparable](leases []Lease[V]) State {
	state := Free
	for _, lease := range leases {
		state = max(state, lease.State)
	}
	return state
}
