// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"cmp"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// layout collects the slices that exist and turns targets into a Plan, one
// family at a time.
type layout struct {
	template template
	// adoptable are the owners whose slices may be taken over by an update, the
	// template's own among them. Other slices are deleted.
	adoptable []types.UID
	max       int
	compact   bool
	deleting  bool // the owner is being deleted: create nothing
	// noPlaceholder leaves a family without endpoints without slices.
	noPlaceholder bool

	existing map[discoveryv1.AddressType][]*discoveryv1.EndpointSlice // sorted by name
	taken    map[string]bool                                          // names in use
	plan     Plan
}

func newLayout(in *Input) *layout {
	service := in.Service
	l := &layout{
		template: template{
			namespace: service.Namespace, base: service.Name,
			owner:       ownerReference("Service", service.Name, service.UID),
			labels:      LabelsOf(service, in.OwnName),
			triggerTime: in.TriggerTime,
		},
		adoptable: []types.UID{service.UID},
		max:       cmp.Or(in.MaxEndpoints, MaxEndpoints),
		compact:   in.Compact,
		deleting:  service.DeletionTimestamp != nil,
	}
	l.addExisting(in.Slices)
	return l
}

// addExisting adds the existing slices. Of slices that are being deleted only the names
// count.
func (l *layout) addExisting(existing []*discoveryv1.EndpointSlice) {
	l.existing = map[discoveryv1.AddressType][]*discoveryv1.EndpointSlice{}
	l.taken = make(map[string]bool, len(existing))
	for _, slice := range existing {
		l.taken[slice.Name] = true
		if slice.DeletionTimestamp == nil {
			l.existing[slice.AddressType] = append(l.existing[slice.AddressType], slice)
		}
	}
	for _, list := range l.existing {
		slices.SortFunc(list, byName)
	}
}

// draft is a slice in the making.
type draft struct {
	existing *discoveryv1.EndpointSlice // nil: to be created
	group    int32
	targets  []int32 // indexes, in the order of the endpoints
	write    bool    // differs from existing
	gives    bool    // endpoints of existing move to other slices
}

func (d *draft) name() string {
	if d.existing == nil {
		return ""
	}
	return d.existing.Name
}

// packing is the state of one family while its targets are laid out.
type packing struct {
	max     int
	targets []target
	lists   [][]discoveryv1.EndpointPort
	groups  []*packingGroup // those with targets, sorted by port key

	// spares are slices that are not needed as they are: they are updated to something
	// else or deleted, each with one write.
	spares []spare
	// left are slices whose endpoints have moved to others. They can only be deleted,
	// after the others have been written: an update could come first, and endpoints
	// would be missing meanwhile.
	left []*discoveryv1.EndpointSlice
	// duplicates counts endpoints that have a place in an earlier slice.
	duplicates int
}

// spare is a slice that is not needed as it is.
type spare struct {
	slice *discoveryv1.EndpointSlice
	gives bool // endpoints of it move to other slices
}

// packingGroup is the part of a packing that has one port list.
type packingGroup struct {
	list    int32
	key     portKey
	size    int // targets
	drafts  []*draft
	waiting []int32 // targets without a place, sorted by key
}

// family lays out the targets of one family and adds the changes to the plan.
// It sets target.placed.
func (l *layout) family(family discoveryv1.AddressType, targets []target, lists [][]discoveryv1.EndpointPort, keyOf keyFunc) {
	p := &packing{max: l.max, targets: targets, lists: lists}
	p.makeGroups()
	l.keep(p, family, keyOf)
	p.fill()
	p.merge()
	p.placeWaiting()
	if l.compact {
		p.compact()
	}
	p.reuseSpares()
	l.plan.Duplicates += p.duplicates
	l.write(p, family)
}

// makeGroups makes a group for each port list that a target has.
func (p *packing) makeGroups() {
	byList := make([]*packingGroup, len(p.lists))
	for i := range p.targets {
		list := p.targets[i].group
		if byList[list] == nil {
			byList[list] = &packingGroup{list: list, key: keyOfPorts(p.lists[list])}
			p.groups = append(p.groups, byList[list])
		}
		byList[list].size++
	}
	slices.SortFunc(p.groups, func(a, b *packingGroup) int { return cmp.Compare(a.key, b.key) })
}

// keep places the targets that are already in a slice with the right ports, and makes
// spares of the slices without any.
func (l *layout) keep(p *packing, family discoveryv1.AddressType, keyOf keyFunc) {
	byKey := make(map[string]int32, len(p.targets))
	for i := range p.targets {
		byKey[p.targets[i].key] = int32(i)
	}
	groups := make(map[portKey]*packingGroup, len(p.groups))
	for _, group := range p.groups {
		groups[group.key] = group
	}
	var obsolete []*discoveryv1.EndpointSlice
	for _, existing := range l.existing[family] {
		group := groups[keyOfPorts(existing.Ports)]
		switch {
		case !l.mayAdopt(existing):
			l.plan.Delete = append(l.plan.Delete, existing)
		case group == nil:
			obsolete = append(obsolete, existing)
		default:
			l.addDraft(p, group, p.keepSlice(existing, group, byKey, keyOf))
		}
	}
	room := p.roomNeeded()
	for _, existing := range obsolete {
		group, moves := p.heir(existing, byKey, keyOf, room)
		if group == nil {
			p.spares = append(p.spares, spare{slice: existing, gives: moves})
			l.plan.Removed += len(existing.Endpoints)
			continue
		}
		d := p.keepSlice(existing, group, byKey, keyOf)
		d.write = true // for the ports
		room[group.list]--
		l.addDraft(p, group, d)
	}
	for _, group := range p.groups {
		group.waiting = p.unplaced(group)
		l.plan.Added += len(group.waiting)
	}
}

// addDraft adds what is kept of a slice to its group, or makes a spare of the
// slice if nothing is.
func (l *layout) addDraft(p *packing, group *packingGroup, d *draft) {
	l.plan.Removed += len(d.existing.Endpoints) - len(d.targets)
	d.write = d.write || !l.template.upToDate(d.existing)
	if d.write && len(d.targets) == 0 {
		p.spares = append(p.spares, spare{slice: d.existing, gives: d.gives})
		return
	}
	group.drafts = append(group.drafts, d)
}

// roomNeeded returns, by port list, how many slices those targets fill that have
// no place yet.
func (p *packing) roomNeeded() []int {
	needed := make([]int, len(p.lists))
	for i := range p.targets {
		if !p.targets[i].placed {
			needed[p.targets[i].group]++
		}
	}
	for i := range needed {
		needed[i] = (needed[i] + p.max - 1) / p.max
	}
	return needed
}

// heir returns, for a slice whose ports no target has any longer, the group that most of
// its endpoints belong to, among the groups that need room; nil for none. The slice gets
// that group's ports and keeps its endpoints. stays reports whether any endpoint stays,
// there or elsewhere.
func (p *packing) heir(existing *discoveryv1.EndpointSlice, byKey map[string]int32, keyOf keyFunc, room []int) (best *packingGroup, stays bool) {
	counts := make([]int, len(p.lists))
	for i := range existing.Endpoints {
		for _, group := range p.groups {
			key, ok := keyOf(&existing.Endpoints[i], group.key)
			if index, wanted := byKey[key]; ok && wanted && p.targets[index].group == group.list && !p.targets[index].placed {
				counts[group.list]++
				stays = true
			}
		}
	}
	for _, group := range p.groups {
		if n := counts[group.list]; n > 0 && room[group.list] > 0 && (best == nil || n > counts[best.list]) {
			best = group
		}
	}
	return best, stays
}

func (l *layout) mayAdopt(slice *discoveryv1.EndpointSlice) bool {
	return slices.ContainsFunc(l.adoptable, func(uid types.UID) bool { return ownedBy(slice, uid) })
}

// keepSlice returns the draft with those endpoints of the slice that are wanted
// and have no place yet.
func (p *packing) keepSlice(existing *discoveryv1.EndpointSlice, group *packingGroup, byKey map[string]int32, keyOf keyFunc) *draft {
	d := &draft{existing: existing, group: group.list, targets: make([]int32, 0, len(existing.Endpoints))}
	for i := range existing.Endpoints {
		endpoint := &existing.Endpoints[i]
		key, ok := keyOf(endpoint, group.key)
		index, wanted := byKey[key]
		if !ok || !wanted {
			d.write = true
			continue
		}
		if p.targets[index].placed {
			d.write = true
			p.duplicates++
			continue
		}
		if p.targets[index].group != group.list || len(d.targets) == p.max {
			d.write, d.gives = true, true
			continue
		}
		p.targets[index].placed = true
		d.targets = append(d.targets, index)
		d.write = d.write || !p.targets[index].matches(endpoint)
	}
	return d
}

// unplaced returns the group's targets that have no place, sorted by key.
func (p *packing) unplaced(group *packingGroup) []int32 {
	var waiting []int32
	for i := range p.targets {
		if t := &p.targets[i]; t.group == group.list && !t.placed {
			waiting = append(waiting, int32(i))
		}
	}
	slices.SortFunc(waiting, func(a, b int32) int { return cmp.Compare(p.targets[a].key, p.targets[b].key) })
	return waiting
}

// write turns the packing's drafts and spares into the plan's writes.
func (l *layout) write(p *packing, family discoveryv1.AddressType) {
	total := 0
	for _, group := range p.groups {
		l.plan.Endpoints += group.size
		l.plan.Needed += (group.size + l.max - 1) / l.max
		for _, d := range group.drafts {
			total++
			l.writeDraft(p, d, family)
		}
	}
	if total == 0 {
		total = l.placeholder(p, family)
		l.plan.Needed += total
	}
	l.plan.Slices += total
	for _, spare := range p.spares {
		l.plan.Delete = append(l.plan.Delete, spare.slice)
	}
	l.plan.Delete = append(l.plan.Delete, p.left...)
}

func (l *layout) writeDraft(p *packing, d *draft, family discoveryv1.AddressType) {
	if !d.write {
		return
	}
	var slice *discoveryv1.EndpointSlice
	if d.existing != nil {
		slice = l.template.update(d.existing)
	} else {
		slice = l.template.create(family, l.template.name(family, l.taken))
	}
	slice.Endpoints = make([]discoveryv1.Endpoint, len(d.targets))
	for i, index := range d.targets {
		slice.Endpoints[i] = p.targets[index].endpoint()
	}
	for i := range p.lists[d.group] {
		slice.Ports = append(slice.Ports, *p.lists[d.group][i].DeepCopy())
	}
	switch {
	case d.gives:
		l.plan.Shrink = append(l.plan.Shrink, slice)
	case d.existing != nil:
		l.plan.Update = append(l.plan.Update, slice)
	case !l.deleting:
		l.plan.Create = append(l.plan.Create, slice)
	}
}

// placeholder keeps, makes or creates the empty slice of a family that has no
// endpoints. It returns how many slices the family has then.
func (l *layout) placeholder(p *packing, family discoveryv1.AddressType) int {
	if l.noPlaceholder {
		return 0
	}
	for i, spare := range p.spares {
		if s := spare.slice; len(s.Endpoints) == 0 && len(s.Ports) == 0 && l.template.upToDate(s) {
			p.spares = slices.Delete(p.spares, i, i+1)
			return 1
		}
	}
	if len(p.spares) > 0 {
		l.plan.Update = append(l.plan.Update, l.template.update(p.spares[0].slice))
		p.spares = p.spares[1:]
		return 1
	}
	if l.deleting {
		return 0
	}
	l.plan.Create = append(l.plan.Create, l.template.create(family, l.template.name(family, l.taken)))
	return 1
}

// dropOtherFamilies deletes the slices of families that the owner no longer has.
func (l *layout) dropOtherFamilies(families []discoveryv1.AddressType) {
	for family, list := range l.existing {
		if !slices.Contains(families, family) {
			l.plan.Delete = append(l.plan.Delete, list...)
		}
	}
}

// finish returns the plan, in an order that does not depend on the input's.
func (l *layout) finish() Plan {
	slices.SortFunc(l.plan.Create, byName)
	slices.SortFunc(l.plan.Update, byName)
	slices.SortFunc(l.plan.Shrink, byName)
	slices.SortFunc(l.plan.Delete, byName)
	return l.plan
}

func byName(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) }
