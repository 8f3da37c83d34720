// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"math"
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Range is the addresses of one family from First to Last, both included.
type Range = alloc.Span[netip.Addr]

// addresses is the arithmetic of ranges.
var addresses = alloc.Addresses()

// PrefixRange returns the addresses of a prefix; bits set after its length do
// not matter.
func PrefixRange(p netip.Prefix) Range { return alloc.PrefixSpan(p.Masked()) }

// AddrRange returns the range of one address.
func AddrRange(a netip.Addr) Range { return Range{First: a, Last: a} }

// Meet returns the parts of r that are in one of others, in their order.
func Meet(r Range, others []Range) []Range {
	var out []Range
	for _, o := range others {
		if both, ok := addresses.Overlap(r, o); ok {
			out = append(out, both)
		}
	}
	return out
}

func containsAddr(ranges []Range, a netip.Addr) bool {
	return slices.ContainsFunc(ranges, func(r Range) bool { return addresses.Contains(r, a) })
}

// sizeOf is how many addresses a range holds, at most 2^64-1.
func sizeOf(r Range) uint64 {
	n := addresses.Distance(r.First, r.Last)
	if n == math.MaxUint64 {
		return n
	}
	return n + 1
}
