// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"fmt"
	"iter"
	"math/bits"
)

// Run is the numbers of [From, To), all of them used.
type Run struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Runs yields the used numbers as runs, in order, each as long as it can be.
// The set must not change meanwhile.
func (b *Bitmap) Runs() iter.Seq[Run] {
	return func(yield func(Run) bool) {
		var open Run // the run that may still grow
		more := b.form.runs(func(r Run) bool {
			if r.From == open.To && open.From != open.To {
				open.To = r.To
				return true
			}
			last := open
			open = r
			return last.From == last.To || yield(last)
		})
		if open.To = min(open.To, b.size); more && open.From < open.To {
			yield(open)
		}
	}
}

// Snapshot returns Runs as a slice, nil for an empty set. It shares nothing
// with the set.
func (b *Bitmap) Snapshot() []Run {
	var out []Run
	for r := range b.Runs() {
		out = append(out, r)
	}
	return out
}

// Restore returns a set of the size that holds what a Snapshot holds. Runs that
// are empty, out of order, overlapping or beyond size are an error, as is a
// size that New would refuse: a snapshot comes from outside.
func Restore(size uint64, runs []Run) (*Bitmap, error) {
	if size == 0 || size > MaxSize {
		return nil, fmt.Errorf("restore bitmap: size %d is not between 1 and 2^48", size)
	}
	b := New(size)
	last := uint64(0)
	for i, r := range runs {
		if r.From >= r.To || r.From < last || r.To > size {
			return nil, fmt.Errorf("restore bitmap: run %d [%d, %d) is empty, out of order or beyond %d", i, r.From, r.To, size)
		}
		b.SetRange(r.From, r.To)
		last = r.To
	}
	return b, nil
}

// wordRuns gives emit the used numbers of one word.
func wordRuns(word, base uint64, emit func(Run) bool) bool {
	for at := 0; word>>at != 0; {
		from := at + bits.TrailingZeros64(word>>at)
		to := from + bits.TrailingZeros64(^(word >> from))
		if !emit(Run{base + uint64(from), base + uint64(to)}) {
			return false
		}
		at = to
	}
	return true
}
