// SPDX-License-Identifier: Apache-2.0

// Package bitmap is a set of numbers from [0, size) that finds a free number in a
// few steps, however full it is. It knows nothing of addresses or ports; package
// alloc gives the numbers their meaning.
//
// # Layout
//
// Bits are stored in words of 64. Above them are summaries with one bit for each
// word below, set if that word is all ones. A step is a mask and a count of
// trailing zeros, so finding, taking and releasing are O(log64 size): three steps
// for a /16, six for 2^32.
//
// Up to 2^20 numbers the words of each level are arrays (flat):
//
//	level 2                          1
//	level 1          0               1    ...           a bit for each word below
//	level 0   0000 0101 0000 1111 | 1111 1111 1111 1111 | ...    a bit for each number
//
// Larger sets are a tree that stores only words and nodes that are neither empty nor
// full, because a range of 2^32 addresses is large and its used part is small. Each
// node has two words of summary:
//
//	level 2            full=..0100  part=..0010
//	                        |            |
//	            child 2: all used     child 1: stored     others: all free
//	                                     |
//	level 1                    full=..0001 part=..1000    words=[1]
//	                                                            |
//	level 0                                              0x00..0041
//
// Its memory grows with the number of boundaries between used and free numbers: an
// empty set of 2^32 numbers is one node, and so is a full one.
//
// # Invariants
//
//   - flat: a bit of a summary is set if and only if the word below is all ones.
//   - tree: a child is free (neither bit set), full (bit in full), or partly used
//     (bit in part, stored at the rank of its bit), never both bits. A stored
//     word is neither 0 nor all ones; a stored node is neither empty nor full.
//   - The numbers from size to the end of the last word or node are marked used
//     when the set is created, so that "full" needs no special case at the end;
//     they are not counted, listed or released.
//
// # Non-goals
//
// No locking: the caller holds a lock already. No clock, no owners, no random
// source: the caller passes a random number. FindRandom is fast rather than uniform:
// it returns the first free number at or after a random one.
package bitmap
