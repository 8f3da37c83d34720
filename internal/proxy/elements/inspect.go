// SPDX-License-Identifier: Apache-2.0

package elements

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Found is what a mode's tables have, for the mode's Inspect.
type Found[S Set] struct {
	Map[S]
	Sets map[model.Family][]nft.Set
}

// NewFound returns a Found without elements.
func NewFound[S Set](sets func(model.Family) []nft.Set) Found[S] {
	f := Found[S]{Map[S]{}, map[model.Family][]nft.Set{}}
	for _, fam := range model.Families {
		f.Sets[fam] = sets(fam)
	}
	return f
}

// Rule returns an element as text.
func (f Found[S]) Rule(id ID[S]) string {
	return f.Sets[id.Family][id.Set].Text(id.Element(f.Map[id]))
}

// Frontends reads the four sets from first on: of frontends with addresses, the same
// from outside, of NodePorts, the same from outside. view returns what an element
// says; nil is that it has no effect.
func (f Found[S]) Frontends(first S, view func(k model.Key, id ID[S], value string) *inspect.View) map[model.Key]*inspect.Frontend {
	const outside, nodePort = 1, 2
	all := map[model.Key]*inspect.Frontend{}
	for id, value := range f.Map {
		which := id.Set - first
		k, ok := Frontend(id.Family, id.Key, which&nodePort == 0)
		if !ok || which > outside|nodePort {
			continue
		}
		if all[k] == nil {
			all[k] = &inspect.Frontend{}
		}
		if v := view(k, id, value); which&outside != 0 {
			all[k].Outside = v
		} else {
			all[k].Inside = v
		}
	}
	for _, fe := range all {
		if fe.Outside == nil {
			fe.Outside = fe.Inside
		}
	}
	return all
}

// Addresses adds the addresses of a set, or of pairs of the same address, to found.
func (f Found[S]) Addresses(set S, found func(a netip.Addr, rule string)) {
	for id := range f.Map {
		if id.Set == set {
			if a, ok := netip.AddrFromSlice([]byte(id.Key)[:len(id.Family.Unspecified().AsSlice())]); ok {
				found(a, f.Rule(id))
			}
		}
	}
}

// Ranges returns the ranges of a set whose elements are starts and ends.
func (f Found[S]) Ranges(set S) (rs []inspect.Range) {
	var ids []ID[S]
	for id := range f.Map {
		if id.Set == set {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, ID[S].Compare)
	for i, id := range ids {
		first, ok := netip.AddrFromSlice([]byte(id.Key))
		if id.End || !ok {
			continue
		}
		r := model.RangeOf(netip.PrefixFrom(first, 0)) // to the last address, which has no end behind it
		r.First = first
		if i+1 < len(ids) && ids[i+1].End && ids[i+1].Family == id.Family {
			end, _ := netip.AddrFromSlice([]byte(ids[i+1].Key))
			r.Last = end.Prev()
		}
		rs = append(rs, inspect.Range{AddrRange: r, Rule: f.Rule(id)})
	}
	return rs
}

// Admit sets, of frontends with addresses, which are restricted to the source ranges
// of a set.
func (f Found[S]) Admit(frontends map[model.Key]*inspect.Frontend, restricted, ranges S) {
	views := func(id ID[S], n int, set func(*inspect.View)) {
		k, _ := Frontend(id.Family, id.Key[:n], true)
		if fe := frontends[k]; fe != nil {
			for _, v := range distinct(fe.Inside, fe.Outside) {
				set(v)
			}
		}
	}
	for id := range f.Map {
		switch n := len(id.Family.Unspecified().AsSlice()); id.Set {
		case restricted:
			views(id, len(id.Key), func(v *inspect.View) { v.Restricted = true })
		case ranges:
			first, _ := netip.AddrFromSlice([]byte(id.Key[len(id.Key)-n:]))
			end := cmp.Or(id.KeyEnd, id.Key) // without an end it is one address
			last, _ := netip.AddrFromSlice([]byte(end[len(end)-n:]))
			r := inspect.Range{AddrRange: model.AddrRange{First: first, Last: last}, Rule: f.Rule(id)}
			views(id, len(id.Key)-n, func(v *inspect.View) { v.SourceRanges = append(v.SourceRanges, r) })
		}
	}
}

// distinct returns the views that there are, each once.
func distinct(a, b *inspect.View) []*inspect.View {
	return slices.DeleteFunc(slices.Compact([]*inspect.View{a, b}), func(v *inspect.View) bool { return v == nil })
}
