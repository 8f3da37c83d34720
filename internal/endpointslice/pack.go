// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"slices"
)

// fill puts waiting targets into the slices that are written anyway, fullest
// first.
func (p *packing) fill() {
	for _, group := range p.groups {
		for _, d := range group.written() {
			group.waiting = p.fillDraft(d, group.waiting)
		}
	}
}

// fillDraft moves as many of the waiting targets into the draft as it has room for,
// and returns the rest.
func (p *packing) fillDraft(d *draft, waiting []int32) []int32 {
	n := min(len(waiting), p.max-len(d.targets))
	if n == 0 {
		return waiting
	}
	d.targets = append(d.targets, waiting[:n]...)
	d.write = true
	return waiting[n:]
}

// written returns the drafts that will be written, fullest first.
func (g *packingGroup) written() []*draft {
	list := slices.DeleteFunc(slices.Clone(g.drafts), func(d *draft) bool { return !d.write })
	slices.SortFunc(list, fullestFirst)
	return list
}

func fullestFirst(a, b *draft) int {
	return cmp.Or(cmp.Compare(len(b.targets), len(a.targets)), cmp.Compare(a.name(), b.name()))
}

// merge empties the emptiest of the slices that are written anyway into others
// of them, whole. The deletes that follow replace as many updates, so this
// costs nothing.
func (p *packing) merge() {
	for _, group := range p.groups {
		if len(group.waiting) > 0 {
			continue // then those that are written are full
		}
		written := group.written()
		for last := len(written) - 1; last > 0; last-- {
			from := written[last]
			into := bestFit(written[:last], len(from.targets), p.max)
			if into == nil {
				break // what is larger fits even less
			}
			into.targets = append(into.targets, from.targets...)
			p.discard(group, from)
			written = written[:last]
			slices.SortFunc(written, fullestFirst)
		}
	}
}

// discard drops a slice whose targets have moved.
func (p *packing) discard(group *packingGroup, d *draft) {
	group.drafts = slices.DeleteFunc(group.drafts, func(other *draft) bool { return other == d })
	if d.existing != nil {
		p.left = append(p.left, d.existing)
	}
}

// bestFit returns the draft in which n more targets leave the least room, nil if
// they fit into none.
func bestFit(drafts []*draft, n, limit int) *draft {
	var best *draft
	for _, d := range drafts {
		if len(d.targets)+n > limit {
			continue
		}
		if best == nil || len(d.targets) > len(best.targets) ||
			len(d.targets) == len(best.targets) && d.name() < best.name() {
			best = d
		}
	}
	return best
}

// placeWaiting places the targets that still wait: in a spare, which is written anyway, else
// in new slices, and those that do not fill one in the unchanged slice where they fit best.
func (p *packing) placeWaiting() {
	spares := len(p.spares)
	for _, group := range p.groups {
		for len(group.waiting) > 0 {
			if spares == 0 && len(group.waiting) < p.max {
				if into := bestFit(group.drafts, len(group.waiting), p.max); into != nil {
					group.waiting = p.fillDraft(into, group.waiting)
					continue
				}
			}
			spares = max(0, spares-1)
			fresh := &draft{group: group.list}
			group.waiting = p.fillDraft(fresh, group.waiting)
			group.drafts = append(group.drafts, fresh)
		}
	}
}

// compact empties the emptiest slices of each group into the others until there
// are as few as can be.
func (p *packing) compact() {
	for _, group := range p.groups {
		needed := (group.size + p.max - 1) / p.max
		for len(group.drafts) > needed {
			slices.SortFunc(group.drafts, fullestFirst)
			from := group.drafts[len(group.drafts)-1]
			p.discard(group, from)
			rest := from.targets
			for _, into := range group.drafts {
				rest = p.fillDraft(into, rest)
			}
		}
	}
}

// reuseSpares uses spares, in the order of names, for slices that would be created.
func (p *packing) reuseSpares() {
	slices.SortFunc(p.spares, func(a, b spare) int { return byName(a.slice, b.slice) })
	for _, group := range p.groups {
		for _, d := range group.drafts {
			if d.existing == nil && len(p.spares) > 0 {
				d.existing, d.gives, p.spares = p.spares[0].slice, p.spares[0].gives, p.spares[1:]
			}
		}
	}
}
