// SPDX-License-Identifier: Apache-2.0

package alloc

import "time"

// Doubt says that a value may be in use by somebody who cannot be seen, until
// then. A value that somebody holds or picked is left as it is.
func (l *Ledger[V]) Doubt(v V, now, until time.Time) {
	l.doubt(Lease[V]{Value: v, Since: now, Until: until, settled: now})
}

// doubt is Doubt of a value that the owner of the lease may have back. It
// shortens no doubt that there is: of two, the longer one counts, and the value
// goes back to an owner that both have.
func (l *Ledger[V]) doubt(lease Lease[V]) {
	if l.Taken(lease.Value) || l.IsBooked(lease.Value) {
		return
	}
	for _, other := range l.leases[lease.Value] {
		if other.State != Doubted {
			continue
		}
		if other.Owner != lease.Owner {
			lease.Owner = Owner{}
		}
		lease.Until, lease.settled = later(lease.Until, other.Until), later(lease.settled, other.settled)
	}
	l.undoubt(lease.Value)
	lease.State, lease.doubt = Doubted, 0
	l.put(lease)
	l.ends.add(lease.Until, lease.Value)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (l *Ledger[V]) undoubt(v V) {
	l.cut(v, func(lease Lease[V]) bool { return lease.State == Doubted || lease.State == Unproven })
}

// Trust says that a value was not in use by anyone unseen at that time. It ends
// no doubt that arose later, nor that of a pick whose request could still have
// been on its way then.
func (l *Ledger[V]) Trust(v V, at time.Time) {
	l.cut(v, func(lease Lease[V]) bool {
		return (lease.State == Doubted || lease.State == Unproven) && !lease.settled.After(at)
	})
}

// Unprove says of every value that Next could return now that nobody has looked
// whether it is in use by somebody who cannot be seen, until then. Such a value
// is chosen before a doubted one, and after one that Trust was said of.
func (l *Ledger[V]) Unprove(now, until time.Time) {
	for _, v := range l.Unused() {
		if len(l.leases[v]) == 0 {
			l.put(Lease[V]{Value: v, State: Unproven, Since: now, Until: until, settled: now})
			l.ends.add(until, v)
		}
	}
}

// Unused returns the values of all pools that nobody holds or picked, excluded
// ones not among them; those that Next could return now come first. It is for
// pools of ports: it takes a step for each value.
func (l *Ledger[V]) Unused() []V {
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

// Taken tells whether somebody holds or picked the value.
func (l *Ledger[V]) Taken(v V) bool { return strongest(l.leases[v]) >= Picked }

// Booked says whether whoever stores Services has a record of the value being
// in use, apart from the Services themselves. A value that is booked and that
// nobody has is doubted for as long as that lasts; when it ends, all doubt does.
func (l *Ledger[V]) Booked(v V, yes bool) {
	if yes {
		l.booked[v] = struct{}{}
		l.mindBooked(v)
		return
	}
	delete(l.booked, v)
	l.undoubt(v)
}

// IsBooked returns what Booked said last.
func (l *Ledger[V]) IsBooked(v V) bool {
	_, yes := l.booked[v]
	return yes
}

func (l *Ledger[V]) mindBooked(v V) {
	if _, yes := l.booked[v]; yes && len(l.leases[v]) == 0 {
		l.put(Lease[V]{Value: v, State: Doubted, Until: never})
	}
}

// never is later than any time that matters.
var never = time.Unix(1<<40, 0)

// doubtedFirst returns the value of the pool that has been Doubted for longest,
// among those that are not booked. Its cost follows the number of leases that
// end by themselves.
func (l *Ledger[V]) doubtedFirst(p *pool[V]) (v V, ok bool) {
	if p.counts[Doubted] == 0 {
		return v, false
	}
	var since time.Time
	for _, end := range l.ends.queue {
		leases := l.leases[end.value]
		if strongest(leases) != Doubted || l.IsBooked(end.value) || !p.gives(end.value) {
			continue
		}
		if at := leases[0].Since; !ok || at.Before(since) || at.Equal(since) && l.kind.Compare(end.value, v) < 0 {
			v, since, ok = end.value, at, true
		}
	}
	return v, ok
}
