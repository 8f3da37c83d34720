// SPDX-License-Identifier: Apache-2.0

package alloc

import "slices"

// Duplicates returns the values that more than one owner holds, in order.
func (l *Allocations[V]) Duplicates() (out []V) {
	for v := range l.allocations {
		holders := 0
		for _, allocation := range l.Of(v) {
			if allocation.State == Held {
				holders++
			}
		}
		if holders > 1 {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, l.kind.Compare)
	return out
}
