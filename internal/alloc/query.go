// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"iter"
	"slices"
)

// Of returns the allocations of a value. The caller must not change them.
func (l *Allocations[V]) Of(v V) []Allocation[V] { return l.allocations[v] }

// Has returns the values that the owner was last observed with. The caller must
// not change them.
func (l *Allocations[V]) Has(owner Owner) []V { return l.held[owner] }

// Remembers returns the values that a Service of the owner's name held when it
// last let go of any, in the order in which it was observed with them, and then
// those granted to it since. They may have other owners by now: Take them. The caller
// must not change them.
func (l *Allocations[V]) Remembers(owner Owner) []V { return l.memory.of(owner) }

// Mine reports whether the owner, going by its name, has the value, held or pending.
func (l *Allocations[V]) Mine(v V, owner Owner) bool {
	return slices.ContainsFunc(l.allocations[v], func(allocation Allocation[V]) bool {
		return allocation.State >= Pending && allocation.Owner.Is(owner)
	})
}

// All yields every allocation, in no order. Nothing must change meanwhile.
func (l *Allocations[V]) All() iter.Seq[Allocation[V]] {
	return func(yield func(Allocation[V]) bool) {
		for _, allocations := range l.allocations {
			for _, allocation := range allocations {
				if !yield(allocation) {
					return
				}
			}
		}
	}
}

// Quarantined yields the quarantined allocations. Its cost follows the number of
// allocations that end by themselves.
func (l *Allocations[V]) Quarantined() iter.Seq[Allocation[V]] {
	return func(yield func(Allocation[V]) bool) {
		for _, end := range l.ends.queue {
			for _, allocation := range l.allocations[end.value] {
				// Other entries of the value are older or newer than this allocation.
				if allocation.State == Quarantined && allocation.Until.Equal(end.at) && !yield(allocation) {
					return
				}
			}
		}
	}
}

// PoolsOf returns the names of the pools that have the value, in order.
func (l *Allocations[V]) PoolsOf(v V) []string {
	var out []string
	l.places.each(l.kind, v, func(p *pool[V]) { out = append(out, p.Name) })
	slices.Sort(out)
	return slices.Compact(out)
}

// Stats counts a pool's values; the zero Stats when there is no such pool. Call
// Expire first to have what is over not counted.
func (l *Allocations[V]) Stats(name string) Stats {
	if p, ok := l.pools[name]; ok {
		return p.stats()
	}
	return Stats{}
}
