// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"time"
)

// Doubt says that a value may be in use by somebody who cannot be seen, until
// then. A value that somebody holds or picked is left as it is.
func (l *Ledger[V]) Doubt(v V, now, until time.Time) { l.doubt(v, Owner{}, now, until) }

// doubt is Doubt of a value that its last owner may have back.
func (l *Ledger[V]) doubt(v V, owner Owner, now, until time.Time) {
	if strongest(l.leases[v]) >= Picked {
		return
	}
	l.put(Lease[V]{Value: v, Owner: owner, State: Doubted, Since: now, Until: until})
	l.ends.add(until, v)
}

// Trust says that a value is not in use by anyone unseen.
func (l *Ledger[V]) Trust(v V) {
	l.cut(v, func(lease Lease[V]) bool { return lease.State == Doubted })
}

// Unused returns the values of all pools, up to a number, that Next could
// return now, and those that are doubted or rest.
func (l *Ledger[V]) Unused(most int) (free, others []V) {
	for _, p := range l.pools {
		for n := uint64(0); p.taken != nil && n < p.taken.Size() && len(free)+len(others) < most; n++ {
			switch v := p.value(n); {
			case p.never.Has(n):
			case !p.taken.Has(n):
				free = append(free, v)
			case strongest(l.leases[v]) <= Resting:
				others = append(others, v)
			}
		}
	}
	return free, others
}

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
	l.Trust(v)
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

// doubted returns the value of the pool that has been doubted longest.
func (l *Ledger[V]) doubted(p *pool[V]) (v V, ok bool) {
	if p.counts[Doubted] == 0 {
		return v, false
	}
	var since time.Time
	for value, leases := range l.leases {
		n, inside := p.index(value)
		if !inside || p.never.Has(n) || l.IsBooked(value) || strongest(leases) != Doubted || ok && !leases[0].Since.Before(since) {
			continue
		}
		v, since, ok = value, leases[0].Since, true
	}
	return v, ok
}
