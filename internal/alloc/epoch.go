// SPDX-License-Identifier: Apache-2.0

package alloc

import "github.com/causeway-lb/causeway/internal/bitmap"

// Epoch is one leadership among those that grant from the same pools, one after the
// other. A request that was granted something in the last epoch may still be on its
// way, seen by no process. So a pool is divided into parts:
//
//	part              0    1    2    3    4    5    6    7
//	is epoch's own    ...  n+2  n+1  n    n-1  ...
//
// Epoch n takes from all but the parts of the two epochs to come, which it takes from
// last. While it has just begun it takes from its own, in which the two before it
// have granted nothing unless all else was full.
type Epoch struct {
	// Number counts epochs.
	Number int
	// Fresh is true while requests of the epoch before may be on their way.
	Fresh bool
}

const (
	epochParts = 8
	nextParts  = 2 // left to the epochs that come next
)

// find returns a free number at random, one from lower up if there is any.
func (e Epoch) find(b *bitmap.Bitmap, lower, random uint64) (uint64, bool) {
	own := epochParts - 1 - (e.Number%epochParts+epochParts)%epochParts
	runs := []struct{ first, parts int }{{own, epochParts - nextParts}, {own - nextParts, nextParts}}
	if e.Fresh {
		runs[0].parts = 1
		runs = append(runs[:1:1], struct{ first, parts int }{own + 1, epochParts - nextParts - 1}, runs[1])
	}
	at := func(part int) uint64 { return lower + (b.Size()-lower)/epochParts*uint64(part) }
	for _, run := range runs {
		first := (run.first + epochParts) % epochParts
		last := first + run.parts
		if last < epochParts {
			if n, ok := b.FindRandom(random, at(first), at(last)); ok {
				return n, true
			}
			continue
		}
		// It goes round the end, with what the division left there.
		pieces := [][2]uint64{{at(first), b.Size()}, {lower, at(last - epochParts)}}
		upper := pieces[0][1] - pieces[0][0]
		if whole := upper + pieces[1][1] - pieces[1][0]; whole > 0 && random%whole >= upper {
			pieces[0], pieces[1] = pieces[1], pieces[0]
		}
		for _, piece := range pieces {
			if n, ok := b.FindRandom(random, piece[0], piece[1]); ok {
				return n, true
			}
		}
	}
	return b.FindRandom(random, 0, lower)
}
