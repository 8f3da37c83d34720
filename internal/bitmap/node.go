// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"math/bits"
	"slices"
)

const allOnes = ^uint64(0)

// node summarises 64 children. Bit i of full: child i holds nothing but used
// numbers. Bit i of part: it holds both, and is stored. Numbers passed to its
// methods count from the node's first number; level says what a child is: a
// word at level 1, a node of level-1 above that.
type node struct {
	full  uint64
	part  uint64
	words []uint64 // level 1: the words of part's bits, in order
	kids  []*node  // above: their nodes
}

// tree is the sparse form of a set.
type tree struct {
	root  node
	level int // of root; a child of root covers 64^level numbers
}

func newTree(size uint64) *tree {
	t := &tree{level: 1}
	for span(t.level+1) < size {
		t.level++
	}
	if end := span(t.level + 1); size < end {
		t.root.setRange(t.level, size, end)
	}
	return t
}

func (t *tree) set(n uint64) bool                       { return t.root.set(t.level, n) }
func (t *tree) clear(n uint64) bool                     { return t.root.clear(t.level, n) }
func (t *tree) setRange(from, to uint64) (added uint64) { return t.root.setRange(t.level, from, to) }
func (t *tree) findFree(n uint64) (uint64, bool)        { return t.root.findFree(t.level, n) }
func (t *tree) runs(emit func(Run) bool) bool           { return t.root.runs(t.level, 0, emit) }

func (t *tree) has(n uint64) bool {
	nd := &t.root
	for level := t.level; ; level-- {
		i, rest := split(level, n)
		bit := uint64(1) << i
		switch {
		case nd.full&bit != 0:
			return true
		case nd.part&bit == 0:
			return false
		case level == 1:
			return nd.words[nd.rank(i)]>>rest&1 != 0
		}
		nd, n = nd.kids[nd.rank(i)], rest
	}
}

// span is how many numbers a child of a node at the level covers: 64^level.
func span(level int) uint64 { return 1 << (6 * level) }

// split returns which child of a node at the level holds n, and n counted from
// that child's first number.
func split(level int, n uint64) (child int, rest uint64) {
	shift := 6 * level
	return int(n >> shift & 63), n & (1<<shift - 1)
}

// below is a mask of the bits lower than i, for i in [0, 64].
func below(i int) uint64 { return 1<<i - 1 }

// rank is the place of child i among those stored.
func (nd *node) rank(i int) int { return bits.OnesCount64(nd.part & below(i)) }

// isFull and isEmpty say so of the node as a whole.
func (nd *node) isFull() bool  { return nd.full == allOnes }
func (nd *node) isEmpty() bool { return nd.full|nd.part == 0 }

// set marks n used and reports whether it was free.
func (nd *node) set(level int, n uint64) bool {
	i, rest := split(level, n)
	bit := uint64(1) << i
	if nd.full&bit != 0 {
		return false
	}
	if level == 1 {
		return nd.setWord(i, 1<<rest) != 0
	}
	if nd.part&bit == 0 {
		nd.insertKid(i, &node{})
	}
	kid := nd.kids[nd.rank(i)]
	changed := kid.set(level-1, rest)
	if kid.isFull() {
		nd.removeKid(i)
		nd.full |= bit
	}
	return changed
}

// clear marks n free and reports whether it was used.
func (nd *node) clear(level int, n uint64) bool {
	i, rest := split(level, n)
	bit := uint64(1) << i
	if (nd.full|nd.part)&bit == 0 {
		return false
	}
	if level == 1 {
		return nd.clearWord(i, 1<<rest)
	}
	if nd.full&bit != 0 {
		nd.full &^= bit
		nd.insertKid(i, &node{full: allOnes})
	}
	kid := nd.kids[nd.rank(i)]
	changed := kid.clear(level-1, rest)
	if kid.isEmpty() {
		nd.removeKid(i)
	}
	return changed
}

// setRange marks [from, to) used and returns how many were free. from < to, and
// both lie in the node.
func (nd *node) setRange(level int, from, to uint64) (added uint64) {
	first, last := int(from>>(6*level)), int((to-1)>>(6*level))
	for i := first; i <= last; i++ {
		if nd.full>>i&1 != 0 {
			continue
		}
		start := uint64(i) << (6 * level)
		lo, hi := max(from, start)-start, min(to-start, span(level))
		added += nd.setPart(level, i, lo, hi)
	}
	return added
}

// setPart is setRange for the part [lo, hi) of child i, which is not full.
func (nd *node) setPart(level, i int, lo, hi uint64) (added uint64) {
	bit := uint64(1) << i
	switch {
	case level == 1:
		return uint64(bits.OnesCount64(nd.setWord(i, below(int(hi))&^below(int(lo)))))
	case nd.part&bit == 0 && lo == 0 && hi == span(level):
		nd.full |= bit
		return hi
	case nd.part&bit == 0:
		nd.insertKid(i, &node{})
	}
	kid := nd.kids[nd.rank(i)]
	added = kid.setRange(level-1, lo, hi)
	if kid.isFull() {
		nd.removeKid(i)
		nd.full |= bit
	}
	return added
}

// findFree returns the lowest free number from n on, and false when the node
// has none. It goes down at most twice: into n's own child, and, when that has
// nothing from n on, into the next child that is not full.
func (nd *node) findFree(level int, n uint64) (uint64, bool) {
	i, rest := split(level, n)
	bit := uint64(1) << i
	switch {
	case nd.full&bit != 0:
	case nd.part&bit == 0:
		return n, true
	case level == 1:
		if free := ^nd.words[nd.rank(i)] &^ below(int(rest)); free != 0 {
			return n - rest + uint64(bits.TrailingZeros64(free)), true
		}
	default:
		if m, ok := nd.kids[nd.rank(i)].findFree(level-1, rest); ok {
			return n - rest + m, true
		}
	}
	free := ^nd.full &^ below(i+1)
	if free == 0 {
		return 0, false
	}
	i = bits.TrailingZeros64(free)
	start := uint64(i) << (6 * level)
	switch {
	case nd.part>>i&1 == 0:
		return start, true
	case level == 1:
		return start + uint64(bits.TrailingZeros64(^nd.words[nd.rank(i)])), true
	}
	m, _ := nd.kids[nd.rank(i)].findFree(level-1, 0)
	return start + m, true
}

// setWord adds bits to word i, which is not full, and returns those that were
// not set.
func (nd *node) setWord(i int, add uint64) (added uint64) {
	at, bit := nd.rank(i), uint64(1)<<i
	if nd.part&bit == 0 {
		if add == allOnes {
			nd.full |= bit
			return add
		}
		nd.words = slices.Insert(nd.words, at, add)
		nd.part |= bit
		return add
	}
	added = add &^ nd.words[at]
	nd.words[at] |= add
	if nd.words[at] == allOnes {
		nd.words = slices.Delete(nd.words, at, at+1)
		nd.part &^= bit
		nd.full |= bit
	}
	return added
}

// clearWord takes one bit out of word i, which is not free, and reports whether
// it was set.
func (nd *node) clearWord(i int, remove uint64) bool {
	at, bit := nd.rank(i), uint64(1)<<i
	if nd.full&bit != 0 {
		nd.full &^= bit
		nd.part |= bit
		nd.words = slices.Insert(nd.words, at, ^remove)
		return true
	}
	if nd.words[at]&remove == 0 {
		return false
	}
	nd.words[at] &^= remove
	if nd.words[at] == 0 {
		nd.words = slices.Delete(nd.words, at, at+1)
		nd.part &^= bit
	}
	return true
}

func (nd *node) insertKid(i int, kid *node) {
	nd.kids = slices.Insert(nd.kids, nd.rank(i), kid)
	nd.part |= 1 << i
}

func (nd *node) removeKid(i int) {
	at := nd.rank(i)
	nd.kids = slices.Delete(nd.kids, at, at+1)
	nd.part &^= 1 << i
}

// runs gives emit the used numbers, in order but not joined, and reports whether
// emit wants more.
func (nd *node) runs(level int, base uint64, emit func(Run) bool) bool {
	for some := nd.full | nd.part; some != 0; some &= some - 1 {
		i := bits.TrailingZeros64(some)
		start := base + uint64(i)<<(6*level)
		var more bool
		switch {
		case nd.full>>i&1 != 0:
			more = emit(Run{start, start + span(level)})
		case level == 1:
			more = wordRuns(nd.words[nd.rank(i)], start, emit)
		default:
			more = nd.kids[nd.rank(i)].runs(level-1, start, emit)
		}
		if !more {
			return false
		}
	}
	return true
}
