// SPDX-License-Identifier: Apache-2.0

// Package bitmap keeps a set of numbers from [0, size) in which a free number
// is found in a few steps however full the set is. It knows nothing of
// addresses or ports; package alloc gives the numbers their meaning.
//
// # Layout
//
// Bits are kept in words of 64, and above them are summaries, a bit for each
// word below: set when that word is all ones. So a step is a mask and a count
// of trailing zeros, and finding, taking and giving back are O(log64 size):
// three steps for a /16, six for 2^32.
//
// Up to 2^20 numbers the words of each level are arrays (flat):
//
//	level 2                          1
//	level 1          0               1    ...           a bit for each word below
//	level 0   0000 0101 0000 1111 | 1111 1111 1111 1111 | ...    a bit for each number
//
// Beyond that they are a tree that stores only what is neither empty nor full,
// because a range of 2^32 addresses is large and what is used of it is small.
// Each node keeps two words of summary:
//
//	level 2            full=..0100  part=..0010
//	                        |            |
//	            child 2: all used     child 1: stored     others: all free
//	                                     |
//	level 1                    full=..0001 part=..1000    words=[1]
//	                                                            |
//	level 0                                              0x00..0041
//
// Its memory follows the number of boundaries between used and free: an empty
// set of 2^32 numbers is one node, and so is a full one.
//
// # Invariants
//
//   - flat: a bit of a summary is set if and only if the word below is all ones.
//   - tree: a child is free (neither bit set), full (bit in full), or partly used
//     (bit in part, stored at the rank of its bit), never both bits. A stored
//     word is neither 0 nor all ones; a stored node is neither empty nor full.
//   - The numbers from size to the end of the last word or node are marked used
//     when the set is made, so that "full" needs no special case at the end; they
//     are not counted, listed or given back.
//
// # Non-goals
//
// No locking: the caller has a lock already. No clock, no owners, no random
// source: a random number is passed in. FindRandom is fast rather than uniform:
// it takes the first free number at or after a random one.
package bitmap
