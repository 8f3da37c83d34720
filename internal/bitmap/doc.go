// SPDX-License-Identifier: Apache-2.0

// Package bitmap keeps a set of numbers from [0, size) in which a free number
// is found in a few steps however full the set is. It knows nothing of
// addresses or ports; package alloc gives the numbers their meaning.
//
// # Layout
//
// A Bitmap is a tree with 64 children a node. A leaf is one word, a bit for
// each number. A node above it keeps two words of summary, and stores only the
// children that are neither empty nor full:
//
//	level 2            full=..0100  part=..0010
//	                        |            |
//	            child 2: all used     child 1: stored     others: all free
//	                                     |
//	level 1                    full=..0001 part=..1000    words=[1]
//	                                                            |
//	level 0                                              0x00..0041
//
// So memory follows the number of boundaries between used and free, not size:
// an empty set of 2^32 numbers is one node, and so is a full one. A step down
// is a mask and a count of trailing zeros, hence finding, taking and giving
// back are O(log64 size): three steps for a /16, six for 2^32.
//
// # Invariants
//
//   - A child is free (neither bit set), full (bit in full), or partly used
//     (bit in part, stored at the rank of its bit). Never both bits.
//   - A stored word is neither 0 nor all ones; a stored node is neither empty
//     nor full.
//   - The numbers from size to the end of the tree are marked used when the set
//     is made, so that "full" needs no special case at the end; they are not
//     counted, listed or given back.
//
// # Non-goals
//
// No locking: the caller has a lock already. No clock, no owners, no random
// source: a random number is passed in. FindRandom is fast rather than uniform:
// it takes the first free number at or after a random one.
package bitmap
