// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"iter"
	"math/bits"
)

// Run is the numbers of [From, To), all of them used.
type Run struct{ From, To uint64 }

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

// wordRuns passes emit the used numbers of one word.
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
