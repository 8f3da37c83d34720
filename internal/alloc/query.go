// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"iter"
	"slices"
)

// Leases returns the leases of a value. The caller must not change them.
func (l *Ledger[V]) Leases(v V) []Lease[V] { return l.leases[v] }

// Has returns the values that the owner was last observed with. The caller must
// not change them.
func (l *Ledger[V]) Has(owner Owner) []V { return l.held[owner] }

// Remembers returns the values that a Service of the owner's name held when it
// last let go of any, in the order in which it was observed with them, and then
// those picked for it since. They may be anyone's by now: Take them. The caller
// must not change them.
func (l *Ledger[V]) Remembers(owner Owner) []V { return l.memory.of(owner) }

// Mine tells whether the owner, going by its name, holds or picked the value.
func (l *Ledger[V]) Mine(v V, owner Owner) bool {
	return slices.ContainsFunc(l.leases[v], func(lease Lease[V]) bool {
		return lease.State >= Picked && lease.Owner.same(owner)
	})
}

// All yields every lease, in no order. The ledger must not change meanwhile.
func (l *Ledger[V]) All() iter.Seq[Lease[V]] {
	return func(yield func(Lease[V]) bool) {
		for _, leases := range l.leases {
			for _, lease := range leases {
				if !yield(lease) {
					return
				}
			}
		}
	}
}

// Resting yields the leases of values that rest. Its cost follows the number of
// leases that end by themselves.
func (l *Ledger[V]) Resting() iter.Seq[Lease[V]] {
	return func(yield func(Lease[V]) bool) {
		for _, end := range l.ends.queue {
			for _, lease := range l.leases[end.value] {
				// Other entries of the value are older or newer than this lease.
				if lease.State == Resting && lease.Until.Equal(end.at) && !yield(lease) {
					return
				}
			}
		}
	}
}

// Owners yields every owner of a Held lease, in no order.
func (l *Ledger[V]) Owners() iter.Seq[Owner] {
	return func(yield func(Owner) bool) {
		for o := range l.held {
			if !yield(o) {
				return
			}
		}
	}
}

// Duplicates returns the values that more than one owner holds, in order.
func (l *Ledger[V]) Duplicates() []V {
	out := make([]V, 0, len(l.twice))
	for v := range l.twice {
		out = append(out, v)
	}
	slices.SortFunc(out, l.kind.Compare)
	return out
}

// PoolsOf returns the names of the pools that have the value, in order.
func (l *Ledger[V]) PoolsOf(v V) []string {
	var out []string
	l.places.each(l.kind, v, func(p *pool[V]) { out = append(out, p.Name) })
	slices.Sort(out)
	return slices.Compact(out)
}

// Stats counts a pool's values; the zero Stats when there is no such pool. Call
// Expire first to have what is over not counted.
func (l *Ledger[V]) Stats(name string) Stats {
	if p, ok := l.pools[name]; ok {
		return p.stats()
	}
	return Stats{}
}
