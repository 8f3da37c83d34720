// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"slices"

	"golang.org/x/net/bpf"
)

// MaxRanges is how many ranges a filter searches at most. A program that
// searches three times then stays below the kernel's 4,096 instructions
// (BPF_MAXINSNS).
const MaxRanges = 256

// acceptLength is how much of an accepted frame the kernel hands over.
const acceptLength = 1 << 18

// Range is an inclusive range of keys.
type Range struct{ First, Last uint32 }

// Ranges returns at most max sorted, disjoint ranges that cover all keys. Where
// there are more, the closest ones are merged, so that the cover is larger than
// the set by as little as possible. It sorts keys in place.
func Ranges(keys []uint32, max int) []Range {
	slices.Sort(keys)
	var out []Range
	for _, k := range keys {
		if n := len(out); n > 0 && (k == out[n-1].Last || k == out[n-1].Last+1) {
			out[n-1].Last = k
			continue
		}
		out = append(out, Range{k, k})
	}
	if len(out) <= max {
		return out
	}
	gaps := make([]uint32, 0, len(out)-1)
	for i := 1; i < len(out); i++ {
		gaps = append(gaps, out[i].First-out[i-1].Last)
	}
	slices.Sort(gaps)
	merge := len(out) - max
	limit := gaps[merge-1]
	merged := out[:1]
	for _, r := range out[1:] {
		last := &merged[len(merged)-1]
		if merge > 0 && r.First-last.Last <= limit {
			last.Last = r.Last
			merge--
			continue
		}
		merged = append(merged, r)
	}
	return merged
}

// Search compiles "accept if the 32-bit word at offset is in ranges". It falls
// through to the instruction after it when the word is not. ranges must be
// sorted and disjoint.
//
//	load word
//	            jge middle ------> right half
//	            left half                |
//	            (up to 4 ranges, linear) |
//	            ja end <-----------------+
func Search(offset uint32, ranges []Range) []bpf.Instruction {
	return append([]bpf.Instruction{bpf.LoadAbsolute{Off: offset, Size: 4}}, search(ranges)...)
}

// leaf is how many ranges are compared one after the other.
const leaf = 4

func search(ranges []Range) []bpf.Instruction {
	if len(ranges) <= leaf {
		var out []bpf.Instruction
		for _, r := range ranges {
			out = append(out,
				bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: r.First, SkipFalse: 2},
				bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: r.Last, SkipTrue: 1},
				bpf.RetConstant{Val: acceptLength},
			)
		}
		return out
	}
	mid := len(ranges) / 2
	left, right := search(ranges[:mid]), search(ranges[mid:])
	out := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: ranges[mid].First, SkipFalse: 1},
		bpf.Jump{Skip: uint32(len(left) + 1)},
	}
	out = append(out, left...)
	out = append(out, bpf.Jump{Skip: uint32(len(right))})
	return append(out, right...)
}

// Reject ends a filter: what was not accepted is dropped.
func Reject() bpf.Instruction { return bpf.RetConstant{Val: 0} }
