// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"iter"
	"math"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/bitmap"
)

// rangeBitmap finds free addresses in one range. A bit is set when the address is
// taken or never given out by itself.
//
//	range     first ........................................ last
//	bits      [0, size)             size <= bitmap.MaxSize
//	          x = blocked, last, o = taken     beyond: by request only
//	last      likewise, but only what is given last is not set in it
type rangeBitmap struct {
	in      Range
	bits    *bitmap.Bitmap
	last    *bitmap.Bitmap // nil: nothing is given last
	blocked []Range        // excluded, cut to in
	ends    []Range        // given last
	buggy   bool           // .0 and .255 are blocked, and not given last
}

// newRangeBitmap returns the space of a range from which the blocked ranges, and with
// buggy every IPv4 address that ends in .0 or .255, are never found.
//
// What may be the network or broadcast address of a subnet, or its
// routers' anycast address (ends, and IPv4 addresses that end in .0 or .255), is
// found when all else is taken. IPv6 addresses whose last 64 bits are 0 are never
// found: nearly every link has a /64, and its routers take them for theirs (RFC
// 4291 section 2.6.1).
func newRangeBitmap(in Range, blocked, ends []Range, buggy bool) *rangeBitmap {
	size := min(sizeOf(in), bitmap.MaxSize)
	s := &rangeBitmap{in: in, bits: bitmap.New(size), buggy: buggy && in.First.Is4()}
	for _, cut := range Meet(in, blocked) {
		s.block(cut)
	}
	s.ends = Meet(in, ends)
	var late []uint64
	if in.First.Is4() {
		for n := range bytesEnds(in.First, size) {
			if s.buggy {
				s.bits.Set(n)
			} else {
				late = append(late, n)
			}
		}
	} else {
		for _, a := range anycast(in) {
			s.block(AddrRange(a))
		}
	}
	for _, end := range s.ends {
		if n := addresses.Distance(in.First, end.First); n < size {
			late = append(late, n)
		}
	}
	if len(late) == 0 {
		return s
	}
	s.last = bitmap.New(size)
	s.last.SetRange(0, size)
	for _, n := range late {
		s.bits.Set(n)
		if !s.isBlocked(addresses.Add(in.First, n)) {
			s.last.Clear(n)
		}
	}
	return s
}

// block keeps find from a part of the range.
func (s *rangeBitmap) block(cut Range) {
	s.blocked = append(s.blocked, cut)
	size := s.bits.Size()
	if from := addresses.Distance(s.in.First, cut.First); from < size {
		s.bits.SetRange(from, min(addresses.Distance(s.in.First, cut.Last), size-1)+1)
	}
}

// bytesEnds returns the places, below size, of the IPv4 addresses from first on that
// end in .0 or .255.
func bytesEnds(first netip.Addr, size uint64) iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for n := uint64(0); n < size; n++ {
			switch last := addresses.Add(first, n).As4()[3]; last {
			case 0, 255:
				if !yield(n) {
					return
				}
			default:
				n += uint64(254 - last) // on to .255, with the loop's step
			}
		}
	}
}

// anycast are the addresses of an IPv6 range whose last 64 bits are 0, as far as
// find reaches.
func anycast(in Range) []netip.Addr {
	const most = 2 // bitmap.MaxSize is far less than the addresses of a /64
	a := netip.PrefixFrom(in.First, 64).Masked().Addr()
	if a != in.First {
		a = addresses.Add(addresses.Add(a, math.MaxUint64), 1)
	}
	var out []netip.Addr
	for ; len(out) < most && addresses.Contains(in, a); a = addresses.Add(addresses.Add(a, math.MaxUint64), 1) {
		out = append(out, a)
	}
	return out
}

// isBlocked reports whether find never returns a.
func (s *rangeBitmap) isBlocked(a netip.Addr) bool {
	return s.buggy && endsByte(a) || containsAddr(s.blocked, a)
}

// endsByte reports whether an IPv4 address ends in .0 or .255.
func endsByte(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	last := a.As4()[3]
	return last == 0 || last == 255
}

// isLast reports whether find returns a, which is not blocked, only when all else is
// taken.
func (s *rangeBitmap) isLast(a netip.Addr) bool {
	return s.last != nil && (endsByte(a) && !s.buggy || containsAddr(s.ends, a))
}

// set marks a, which must be in the range, as taken.
func (s *rangeBitmap) set(a netip.Addr) {
	n := addresses.Distance(s.in.First, a)
	switch {
	case n >= s.bits.Size():
	case s.isLast(a):
		s.last.Set(n)
	default:
		s.bits.Set(n)
	}
}

// clear marks a as free again, unless it is blocked.
func (s *rangeBitmap) clear(a netip.Addr) {
	n := addresses.Distance(s.in.First, a)
	switch {
	case n >= s.bits.Size() || s.isBlocked(a):
	case s.isLast(a):
		s.last.Clear(n)
	default:
		s.bits.Clear(n)
	}
}

// find returns the lowest free address or, unless scatter is 0, the first at or
// after scatter/2^64 of the range. With last it looks among those that are given
// last, otherwise among the others.
func (s *rangeBitmap) find(scatter uint64, last bool) (netip.Addr, bool) {
	bits := s.bits
	if last {
		bits = s.last
	}
	if bits == nil {
		return netip.Addr{}, false
	}
	n, ok := bits.FindRandom(scatter, 0, bits.Size())
	if !ok {
		return netip.Addr{}, false
	}
	return addresses.Add(s.in.First, n), true
}

// free is how many addresses find could still return, one after the other.
func (s *rangeBitmap) free() uint64 {
	if s.last == nil {
		return s.bits.Free()
	}
	return s.bits.Free() + s.last.Free()
}
