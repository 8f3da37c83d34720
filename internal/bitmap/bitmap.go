// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"fmt"
	"math/bits"
)

// MaxSize is the largest set that New makes.
const MaxSize = 1 << 48

// Bitmap is a set of numbers from [0, Size). The zero value is not usable; use
// New. It is not safe for concurrent use.
type Bitmap struct {
	size uint64
	used uint64
	form form
}

// form is how a set is kept: flat or tree. Numbers are in [0, size), ranges are
// not empty.
type form interface {
	has(n uint64) bool
	set(n uint64) bool
	clear(n uint64) bool
	setRange(from, to uint64) (added uint64)
	// findFree may return a number beyond size, or false, when there is none.
	findFree(n uint64) (uint64, bool)
	// runs gives emit the used numbers, in order but not joined, and tells
	// whether emit wants more. What it gives may end beyond size.
	runs(emit func(Run) bool) bool
}

// New returns an empty set of numbers from [0, size). It panics unless size is
// between 1 and MaxSize: a size comes from code, not from users.
func New(size uint64) *Bitmap {
	if size == 0 || size > MaxSize {
		panic(fmt.Sprintf("bitmap: size %d is not between 1 and 2^48", size))
	}
	if size <= flatSize {
		return &Bitmap{size: size, form: newFlat(size)}
	}
	return &Bitmap{size: size, form: newTree(size)}
}

// Size returns one more than the largest number that the set can hold.
func (b *Bitmap) Size() uint64 { return b.size }

// Used returns how many numbers are in the set.
func (b *Bitmap) Used() uint64 { return b.used }

// Free returns how many numbers are not in the set.
func (b *Bitmap) Free() uint64 { return b.size - b.used }

// Has reports whether n is in the set. Numbers outside [0, Size) are not.
func (b *Bitmap) Has(n uint64) bool {
	if n >= b.size {
		return false
	}
	return b.form.has(n)
}

// Set adds n to the set and reports whether it was absent. It panics when n is
// outside [0, Size).
func (b *Bitmap) Set(n uint64) bool {
	b.check(n)
	if !b.form.set(n) {
		return false
	}
	b.used++
	return true
}

// Clear takes n out of the set and reports whether it was there. It panics when
// n is outside [0, Size).
func (b *Bitmap) Clear(n uint64) bool {
	b.check(n)
	if !b.form.clear(n) {
		return false
	}
	b.used--
	return true
}

// SetRange adds the numbers of [from, to) and returns how many of them were
// absent. It panics unless from <= to <= Size.
func (b *Bitmap) SetRange(from, to uint64) uint64 {
	b.checkRange(from, to)
	if from == to {
		return 0
	}
	added := b.form.setRange(from, to)
	b.used += added
	return added
}

// Find returns the lowest free number in [from, to), and false when there is
// none. Bounds beyond Size are cut to it.
func (b *Bitmap) Find(from, to uint64) (uint64, bool) {
	to = min(to, b.size)
	if from >= to || b.used == b.size {
		return 0, false
	}
	n, ok := b.form.findFree(from)
	if !ok || n >= to {
		return 0, false
	}
	return n, true
}

// FindRandom returns a free number in [from, to), and false when there is none:
// the first at or after a number that random chooses, going on at from when the
// end is reached. random is 64 evenly distributed bits. Bounds beyond Size are
// cut to it.
//
// The choice is not uniform: a free number after a long used run is likelier.
// What it is for, that a number just given back is rarely the next one taken
// and that two allocators rarely meet, does not need more.
func (b *Bitmap) FindRandom(random, from, to uint64) (uint64, bool) {
	to = min(to, b.size)
	if from >= to || b.used == b.size {
		return 0, false
	}
	offset, _ := bits.Mul64(random, to-from)
	start := from + offset
	if n, ok := b.form.findFree(start); ok && n < to {
		return n, true
	}
	return b.Find(from, start)
}

func (b *Bitmap) check(n uint64) {
	if n >= b.size {
		panic(fmt.Sprintf("bitmap: %d is outside [0, %d)", n, b.size))
	}
}

func (b *Bitmap) checkRange(from, to uint64) {
	if from > to || to > b.size {
		panic(fmt.Sprintf("bitmap: [%d, %d) is outside [0, %d)", from, to, b.size))
	}
}
