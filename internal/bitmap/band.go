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
