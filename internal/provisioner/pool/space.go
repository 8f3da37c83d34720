// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"

	"github.com/causeway-lb/causeway/internal/bitmap"
)

// space finds free addresses in one range. A bit is set when the address is
// taken or never given out by itself.
//
//	range     first ........................................ last
//	bits      [0, size)             size <= bitmap.MaxSize
//	          x = blocked, o = taken     beyond: by request only
type space struct {
	in      Range
	bits    *bitmap.Bitmap
	blocked []Range // excluded, cut to in
	buggy   bool    // .0 and .255 are blocked
}

// newSpace returns the space of a range from which the blocked ranges, and with
// buggy every IPv4 address that ends in .0 or .255, are never found.
func newSpace(in Range, blocked []Range, buggy bool) *space {
	s := &space{in: in, bits: bitmap.New(min(sizeOf(in), bitmap.MaxSize)), buggy: buggy && in.First.Is4()}
	for _, cut := range Meet(in, blocked) {
		s.blocked = append(s.blocked, cut)
		size := s.bits.Size()
		if from := addresses.Distance(in.First, cut.First); from < size {
			s.bits.SetRange(from, min(addresses.Distance(in.First, cut.Last), size-1)+1)
		}
	}
	if s.buggy {
		for n := uint64(0); n < s.bits.Size(); n++ {
			switch last := addresses.Add(in.First, n).As4()[3]; last {
			case 0, 255:
				s.bits.Set(n)
			default:
				n += uint64(254 - last) // on to .255, with the loop's step
			}
		}
	}
	return s
}

// isBlocked tells whether find never returns a.
func (s *space) isBlocked(a netip.Addr) bool {
	if s.buggy {
		if last := a.As4()[3]; last == 0 || last == 255 {
			return true
		}
	}
	return containsAddr(s.blocked, a)
}

// set marks a, which must be in the range, as taken.
func (s *space) set(a netip.Addr) {
	if n := addresses.Distance(s.in.First, a); n < s.bits.Size() {
		s.bits.Set(n)
	}
}

// clear marks a as free again, unless it is blocked.
func (s *space) clear(a netip.Addr) {
	if n := addresses.Distance(s.in.First, a); n < s.bits.Size() && !s.isBlocked(a) {
		s.bits.Clear(n)
	}
}

// find returns the lowest free address or, unless scatter is 0, the first at or
// after scatter/2^64 of the range.
func (s *space) find(scatter uint64) (netip.Addr, bool) {
	n, ok := s.bits.FindRandom(scatter, 0, s.bits.Size())
	if !ok {
		return netip.Addr{}, false
	}
	return addresses.Add(s.in.First, n), true
}

// free is how many addresses find could still return, one after the other.
func (s *space) free() uint64 { return s.bits.Free() }
