// SPDX-License-Identifier: Apache-2.0

package bitmap

// LowerBand returns how many of the lowest numbers of a set to keep for callers
// that ask for a certain number, so that they rarely collide with numbers
// chosen for callers that do not care: size/step, at least atLeast, at most
// atMost, and 0 for a set of atLeast numbers or fewer (KEP-3070, KEP-3668).
func LowerBand(size, atLeast, atMost, step uint64) uint64 {
	if size <= atLeast {
		return 0
	}
	return min(max(size/step, atLeast), atMost)
}

// FindBanded is FindRandom over the whole set, the numbers from lower up first
// and those below it only when no other is free.
func (b *Bitmap) FindBanded(random, lower uint64) (uint64, bool) {
	if n, ok := b.FindRandom(random, lower, b.size); ok {
		return n, true
	}
	return b.FindRandom(random, 0, lower)
}
