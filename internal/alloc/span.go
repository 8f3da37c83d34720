// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Span is the values from First to Last, both included.
type Span[V any] struct{ First, Last V }

// Kind is the arithmetic of one kind of value: Addresses or Ports.
type Kind[V comparable] struct {
	// Name is what one value is called in messages.
	Name string
	// Compare orders two values.
	Compare func(a, b V) int
	// Distance is to-from, for from <= to, or 2^64-1 when that is more.
	Distance func(from, to V) uint64
	// Add is v+n. It does not overflow where it is used: inside a span.
	Add func(v V, n uint64) V
	// Previous is the value before v. It does not underflow where it is used: v
	// is not the first value of a span.
	Previous func(v V) V
	// Format writes a value.
	Format func(V) string
}

// Addresses is the arithmetic of addresses of one family. Values of both
// families must not meet in one Allocations.
func Addresses() Kind[netip.Addr] {
	return Kind[netip.Addr]{
		Name:     "address",
		Compare:  netip.Addr.Compare,
		Distance: addrDistance,
		Add:      addrAdd,
		Previous: netip.Addr.Prev,
		Format:   netip.Addr.String,
	}
}

// Ports is the arithmetic of ports.
func Ports() Kind[uint16] {
	return Kind[uint16]{
		Name:     "port",
		Compare:  cmp.Compare[uint16],
		Distance: func(from, to uint16) uint64 { return uint64(to) - uint64(from) },
		Add:      func(v uint16, n uint64) uint16 { return v + uint16(n) },
		Previous: func(v uint16) uint16 { return v - 1 },
		Format:   func(v uint16) string { return strconv.Itoa(int(v)) },
	}
}

// addrDistance is to-from, or 2^64-1 when that is more.
func addrDistance(from, to netip.Addr) uint64 {
	f, t := from.As16(), to.As16()
	hi := binary.BigEndian.Uint64(t[:8]) - binary.BigEndian.Uint64(f[:8])
	fl, tl := binary.BigEndian.Uint64(f[8:]), binary.BigEndian.Uint64(t[8:])
	if tl < fl {
		hi--
	}
	if hi != 0 {
		return ^uint64(0)
	}
	return tl - fl
}

func addrAdd(a netip.Addr, n uint64) netip.Addr {
	b := a.As16()
	lo := binary.BigEndian.Uint64(b[8:]) + n
	if lo < n {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	}
	binary.BigEndian.PutUint64(b[8:], lo)
	sum := netip.AddrFrom16(b)
	if a.Is4() {
		return sum.Unmap()
	}
	return sum
}

// Contains reports whether v lies in the span.
func (k Kind[V]) Contains(s Span[V], v V) bool {
	return k.Compare(s.First, v) <= 0 && k.Compare(v, s.Last) <= 0
}

// Overlap returns what two spans share.
func (k Kind[V]) Overlap(a, b Span[V]) (Span[V], bool) {
	if k.Compare(a.First, b.First) < 0 {
		a.First = b.First
	}
	if k.Compare(a.Last, b.Last) > 0 {
		a.Last = b.Last
	}
	return a, k.Compare(a.First, a.Last) <= 0
}

// Text writes a span: "first-last", or one value when there is only one.
func (k Kind[V]) Text(s Span[V]) string {
	if s.First == s.Last {
		return k.Format(s.First)
	}
	return k.Format(s.First) + "-" + k.Format(s.Last)
}

// Subtract returns the values of spans that are in none of the holes, in order
// and without overlaps.
func (k Kind[V]) Subtract(spans, holes []Span[V]) []Span[V] {
	holes = k.Merge(holes)
	var out []Span[V]
next:
	for _, s := range k.Merge(spans) {
		for _, h := range holes {
			both, ok := k.Overlap(s, h)
			if !ok {
				continue
			}
			if k.Compare(s.First, both.First) < 0 {
				out = append(out, Span[V]{s.First, k.Previous(both.First)})
			}
			if k.Compare(both.Last, s.Last) >= 0 {
				continue next
			}
			s.First = k.Add(both.Last, 1)
		}
		out = append(out, s)
	}
	return out
}

// Merge returns the same values in order, without overlaps. It does not change
// its argument.
func (k Kind[V]) Merge(spans []Span[V]) []Span[V] {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b Span[V]) int { return k.Compare(a.First, b.First) })
	var out []Span[V]
	for _, s := range spans {
		if n := len(out); n > 0 && k.Compare(s.First, out[n-1].Last) <= 0 {
			if k.Compare(s.Last, out[n-1].Last) > 0 {
				out[n-1].Last = s.Last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// Named is spans with the name of the pool that they belong to.
type Named[V any] struct {
	Name  string
	Spans []Span[V]
}

// Overlaps describes where the spans of a pool meet each other or those of other
// pools: which range, which pool, which values. Others of the same name are an
// older version of the pool and are left out. The order follows the arguments.
func (k Kind[V]) Overlaps(pool Named[V], others []Named[V]) (texts []string) {
	for i, s := range pool.Spans {
		meet := func(theirs []Span[V], whose string) {
			for _, t := range theirs {
				if both, ok := k.Overlap(s, t); ok {
					texts = append(texts, fmt.Sprintf("%s overlaps %s of %s in %s", k.Text(s), k.Text(t), whose, k.Text(both)))
				}
			}
		}
		meet(pool.Spans[:i], "the same pool")
		for _, other := range others {
			if other.Name != pool.Name {
				meet(other.Spans, "pool "+other.Name)
			}
		}
	}
	return texts
}
