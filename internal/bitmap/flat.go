// SPDX-License-Identifier: Apache-2.0

package bitmap

import "math/bits"

// flatSize is the largest set that is kept flat: 130 KiB.
const flatSize = 1 << 20

// flat is the dense form of a set: all words of all levels in arrays. Bit i of
// word w of levels[k] says: at level 0, that the number 64*w+i is used; above,
// that word 64*w+i of the level below is all ones. The last level is one word.
// Bits beyond the end are ones.
type flat struct{ levels [][]uint64 }

// newFlat makes an empty set of that many numbers, at least one.
func newFlat(size uint64) *flat {
	f := &flat{}
	for {
		words := make([]uint64, (size+63)/64)
		if rest := size % 64; rest != 0 {
			words[len(words)-1] = ^below(int(rest))
		}
		f.levels = append(f.levels, words)
		if len(words) == 1 {
			return f
		}
		size = uint64(len(words))
	}
}

func (f *flat) has(n uint64) bool { return f.levels[0][n/64]>>(n%64)&1 != 0 }

func (f *flat) set(n uint64) bool {
	word, bit := &f.levels[0][n/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	if *word |= bit; *word == allOnes {
		f.filled(n / 64)
	}
	return true
}

// filled marks word w of level 0 as full in the levels above.
func (f *flat) filled(w uint64) {
	for _, level := range f.levels[1:] {
		level[w/64] |= 1 << (w % 64)
		if level[w/64] != allOnes {
			return
		}
		w /= 64
	}
}

func (f *flat) clear(n uint64) bool {
	word, bit := &f.levels[0][n/64], uint64(1)<<(n%64)
	was := *word
	if was&bit == 0 {
		return false
	}
	*word = was &^ bit
	w := n / 64
	for _, level := range f.levels[1:] {
		if was != allOnes {
			return true
		}
		was = level[w/64]
		level[w/64] = was &^ (1 << (w % 64))
		w /= 64
	}
	return true
}

// setRange marks [from, to) used and returns how many were free. from < to.
func (f *flat) setRange(from, to uint64) (added uint64) {
	for w := from / 64; w <= (to-1)/64; w++ {
		mask := allOnes
		if w == from/64 {
			mask &^= below(int(from % 64))
		}
		if w == (to-1)/64 {
			mask &= below(int((to-1)%64) + 1)
		}
		word := &f.levels[0][w]
		added += uint64(bits.OnesCount64(mask &^ *word))
		if *word |= mask; *word == allOnes {
			f.filled(w)
		}
	}
	return added
}

// findFree returns the lowest free number from n on. It goes up until a word has
// a zero at or after the place, and down again along the lowest zeros.
func (f *flat) findFree(n uint64) (uint64, bool) {
	for k, level := range f.levels {
		w := n / 64
		if w >= uint64(len(level)) {
			return 0, false
		}
		if free := ^level[w] &^ below(int(n%64)); free != 0 {
			n = 64*w + uint64(bits.TrailingZeros64(free))
			for k--; k >= 0; k-- {
				n = 64*n + uint64(bits.TrailingZeros64(^f.levels[k][n]))
			}
			return n, true
		}
		n = w + 1
	}
	return 0, false
}

// runs is node.runs.
func (f *flat) runs(emit func(Run) bool) bool {
	for w, word := range f.levels[0] {
		if word != 0 && !wordRuns(word, uint64(w)*64, emit) {
			return false
		}
	}
	return true
}
