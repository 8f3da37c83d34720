// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"slices"
	"sort"
	"time"

	"github.com/causeway-lb/causeway/internal/bitmap"
)

// Pool describes the values that Next chooses from.
type Pool[V any] struct {
	Name string
	// Spans are the pool's values; overlaps count once.
	Spans []Span[V]
	// Exclude are values that Next never returns; Take does.
	Exclude []Span[V]
	// LowerBand is how many of the pool's lowest values Next returns only when
	// no other is free.
	LowerBand func(capacity uint64) uint64
	// Quarantine is how long a released value is quarantined; 0 for not at all.
	Quarantine time.Duration
	// MaxPerNamespace is how many values a namespace can have; 0 for no limit.
	MaxPerNamespace int
}

// ServiceIPBand is the LowerBand of ClusterIP pools (KEP-3070).
func ServiceIPBand(capacity uint64) uint64 { return bitmap.LowerBand(capacity, 16, 256, 16) }

// NodePortBand is the LowerBand of NodePort pools (KEP-3668).
func NodePortBand(capacity uint64) uint64 { return bitmap.LowerBand(capacity, 16, 128, 32) }

// pool is a Pool with its bitmap and counts, all computed from the allocations.
type pool[V comparable] struct {
	Pool[V]
	kind         Kind[V]
	starts       []uint64       // of each span in the bitmap
	taken        *bitmap.Bitmap // values with an allocation, and the excluded ones
	claimed      *bitmap.Bitmap // the same without the Unverified
	never        *bitmap.Bitmap // the excluded values
	lower        uint64
	counts       [states]uint64 // values by state; Free is not kept
	perNamespace map[string]int // namespace -> allocations Held or Pending
}

func newPool[V comparable](kind Kind[V], spec Pool[V]) *pool[V] {
	p := &pool[V]{Pool: spec, kind: kind, perNamespace: map[string]int{}}
	p.Spans = kind.Merge(spec.Spans)
	var size uint64
	for _, s := range p.Spans {
		p.starts = append(p.starts, size)
		size += min(kind.Distance(s.First, s.Last), bitmap.MaxSize-1) + 1
		size = min(size, bitmap.MaxSize)
	}
	if size == 0 {
		return p
	}
	p.taken, p.claimed, p.never = bitmap.New(size), bitmap.New(size), bitmap.New(size)
	for _, e := range spec.Exclude {
		p.exclude(e)
	}
	if spec.LowerBand != nil {
		p.lower = spec.LowerBand(size)
	}
	return p
}

func (p *pool[V]) exclude(e Span[V]) {
	for _, s := range p.Spans {
		both, ok := p.kind.Overlap(s, e)
		if !ok {
			continue
		}
		from, ok := p.index(both.First)
		if !ok {
			continue
		}
		to := from + min(p.kind.Distance(both.First, both.Last), p.taken.Size()-1-from) + 1
		for _, set := range []*bitmap.Bitmap{p.taken, p.claimed, p.never} {
			set.SetRange(from, to)
		}
	}
}

// index returns a value's place in the bitmap; false for values outside the
// pool and for those beyond the bitmap's end.
func (p *pool[V]) index(v V) (uint64, bool) {
	i := sort.Search(len(p.Spans), func(i int) bool { return p.kind.Compare(p.Spans[i].First, v) > 0 }) - 1
	if i < 0 || p.kind.Compare(v, p.Spans[i].Last) > 0 {
		return 0, false
	}
	n := p.starts[i] + min(p.kind.Distance(p.Spans[i].First, v), bitmap.MaxSize)
	return n, n < p.taken.Size()
}

// value is the inverse of index.
func (p *pool[V]) value(n uint64) V {
	i, found := slices.BinarySearch(p.starts, n)
	if !found {
		i--
	}
	return p.kind.Add(p.Spans[i].First, n-p.starts[i])
}

// moved tells the pool that one of its values went from one state to another.
func (p *pool[V]) moved(v V, from, to State) {
	n, ok := p.index(v)
	if !ok || from == to {
		return
	}
	excluded := p.never.Has(n)
	if excluded {
		from, to = certain(from), certain(to) // suspect or not, it is not granted
	}
	p.counts[from]--
	p.counts[to]++
	if !excluded {
		mark(p.taken, n, to > Free)
		mark(p.claimed, n, to > Unverified)
	}
}

// certain is the state without suspicion.
func certain(s State) State {
	if s <= Suspect {
		return Free
	}
	return s
}

func mark(set *bitmap.Bitmap, n uint64, used bool) {
	if used {
		set.Set(n)
	} else {
		set.Clear(n)
	}
}

// free returns a value that has no allocation, or else one that is Unverified.
func (p *pool[V]) free(ask Ask) (v V, ok bool) {
	if p.taken == nil {
		return v, false
	}
	for _, set := range []*bitmap.Bitmap{p.taken, p.claimed} {
		if n, ok := ask.Epoch.find(set, p.lower, ask.Random); ok {
			return p.value(n), true
		}
	}
	return v, false
}

// has reports whether the value is one of the pool's, and gives whether Next may
// choose it.
func (p *pool[V]) has(v V) bool {
	_, ok := p.index(v)
	return ok
}

func (p *pool[V]) gives(v V) bool {
	n, ok := p.index(v)
	return ok && !p.never.Has(n)
}

func (p *pool[V]) stats() Stats {
	if p.taken == nil {
		return Stats{}
	}
	s := Stats{Capacity: p.taken.Size(), Held: p.counts[Held], Pending: p.counts[Pending], Quarantined: p.counts[Quarantined], Free: p.taken.Free() + p.counts[Unverified] + p.counts[Suspect]}
	s.Excluded = s.Capacity - s.Held - s.Pending - s.Quarantined - s.Free
	return s
}

// full reports whether one more value for the owner breaks the namespace's limit.
func (p *pool[V]) full(o Owner) error {
	if p.MaxPerNamespace > 0 && p.perNamespace[o.Namespace] >= p.MaxPerNamespace {
		return &QuotaError{Pool: p.Name, Namespace: o.Namespace, Limit: p.MaxPerNamespace}
	}
	return nil
}

// places finds the pools of a value. Pools should not overlap, but if they do
// the value belongs to all.
type places[V comparable] struct {
	spans []place[V]
}

type place[V comparable] struct {
	Span[V]
	reach V // the greatest Last of this and all before
	pool  *pool[V]
}

func newPlaces[V comparable](kind Kind[V], pools map[string]*pool[V]) places[V] {
	var out places[V]
	for _, p := range pools {
		for _, s := range p.Spans {
			out.spans = append(out.spans, place[V]{Span: s, reach: s.Last, pool: p})
		}
	}
	slices.SortFunc(out.spans, func(a, b place[V]) int { return kind.Compare(a.First, b.First) })
	for i := 1; i < len(out.spans); i++ {
		if before := out.spans[i-1].reach; kind.Compare(before, out.spans[i].reach) > 0 {
			out.spans[i].reach = before
		}
	}
	return out
}

// each calls f with every pool that has the value.
func (ps places[V]) each(kind Kind[V], v V, f func(*pool[V])) {
	i := sort.Search(len(ps.spans), func(i int) bool { return kind.Compare(ps.spans[i].First, v) > 0 }) - 1
	for ; i >= 0 && kind.Compare(v, ps.spans[i].reach) <= 0; i-- {
		if kind.Compare(v, ps.spans[i].Last) <= 0 {
			f(ps.spans[i].pool)
		}
	}
}
