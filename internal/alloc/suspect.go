// SPDX-License-Identifier: Apache-2.0

package alloc

import "time"

// MarkSuspect says that a value may be in use unseen, until then. A value that is
// held or pending stays as it is.
func (l *Allocations[V]) MarkSuspect(v V, now, until time.Time) {
	l.suspect(Allocation[V]{Value: v, Since: now, Until: until, verifiable: now})
}

// suspect is MarkSuspect of a value that the owner of the allocation may have back.
// It shortens no suspicion that there is: of two, the longer one counts, and the
// value goes back to an owner that both have.
func (l *Allocations[V]) suspect(allocation Allocation[V]) {
	if l.Taken(allocation.Value) || l.IsBooked(allocation.Value) {
		return
	}
	for _, other := range l.allocations[allocation.Value] {
		if other.State != Suspect {
			continue
		}
		if other.Owner != allocation.Owner {
			allocation.Owner = Owner{}
		}
		allocation.Until, allocation.verifiable = later(allocation.Until, other.Until), later(allocation.verifiable, other.verifiable)
	}
	l.clearSuspicion(allocation.Value)
	allocation.State, allocation.suspectFor = Suspect, 0
	l.put(allocation)
	l.ends.add(allocation.Until, allocation.Value)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (l *Allocations[V]) clearSuspicion(v V) {
	l.cut(v, func(allocation Allocation[V]) bool {
		return allocation.State == Suspect || allocation.State == Unverified
	})
}

// MarkVerified says that a value was not in use unseen at that time. It ends no
// suspicion that arose later, nor that of a value whose request could still have
// been on its way then.
func (l *Allocations[V]) MarkVerified(v V, at time.Time) {
	l.cut(v, func(allocation Allocation[V]) bool {
		return (allocation.State == Suspect || allocation.State == Unverified) && !allocation.verifiable.After(at)
	})
}

// MarkUnverified says of every value that Next could return now that it may be in
// use unseen, until then. Such a value is chosen before a suspect one, and after a
// verified one.
func (l *Allocations[V]) MarkUnverified(now, until time.Time) {
	for _, v := range l.Unused() {
		if len(l.allocations[v]) == 0 {
			l.put(Allocation[V]{Value: v, State: Unverified, Since: now, Until: until, verifiable: now})
			l.ends.add(until, v)
		}
	}
}

// Unused returns the values of all pools that are neither held nor pending nor
// excluded; those that Next could return now come first. It is for pools of ports:
// it takes a step for each value.
func (l *Allocations[V]) Unused() []V {
	var free, others []V
	for _, p := range l.pools {
		for n := uint64(0); p.taken != nil && n < p.taken.Size(); n++ {
			switch v := p.value(n); {
			case p.never.Has(n):
			case !p.taken.Has(n):
				free = append(free, v)
			case !l.Taken(v):
				others = append(others, v)
			}
		}
	}
	return append(free, others...)
}

// Taken reports whether the value is held or pending.
func (l *Allocations[V]) Taken(v V) bool { return strongest(l.allocations[v]) >= Pending }

// SetBooked reports whether the API server has a record of the value being in use,
// apart from the Services themselves. A booked value without an owner is suspect
// for as long as that lasts; when it ends, so does all suspicion.
func (l *Allocations[V]) SetBooked(v V, yes bool) {
	if yes {
		l.booked[v] = struct{}{}
		l.keepBooked(v)
		return
	}
	delete(l.booked, v)
	l.clearSuspicion(v)
}

// IsBooked returns what SetBooked said last.
func (l *Allocations[V]) IsBooked(v V) bool {
	_, yes := l.booked[v]
	return yes
}

func (l *Allocations[V]) keepBooked(v V) {
	if _, yes := l.booked[v]; yes && len(l.allocations[v]) == 0 {
		l.put(Allocation[V]{Value: v, State: Suspect, Until: never})
	}
}

// never is later than any time that matters.
var never = time.Unix(1<<40, 0)

// oldestSuspect returns the value of the pool that has been suspect for longest,
// among those that are not booked. Its cost follows the number of allocations that
// end by themselves.
func (l *Allocations[V]) oldestSuspect(p *pool[V]) (v V, ok bool) {
	if p.counts[Suspect] == 0 {
		return v, false
	}
	var since time.Time
	for _, end := range l.ends.queue {
		allocations := l.allocations[end.value]
		if strongest(allocations) != Suspect || l.IsBooked(end.value) || !p.gives(end.value) {
			continue
		}
		if at := allocations[0].Since; !ok || at.Before(since) || at.Equal(since) && l.kind.Compare(end.value, v) < 0 {
			v, since, ok = end.value, at, true
		}
	}
	return v, ok
}
