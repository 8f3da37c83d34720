// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

func decodeClass(key string) class { return class(binary.NativeEndian.Uint32([]byte(key))) }

// plan is what a full sync will do to one table.
type plan struct {
	f    *family
	want model.Desired
	// settled says that nobody wrote while the set was read that is being compared.
	// What is missing else is perhaps not: it is written again, but is no drift.
	settled bool
	// recreate: the table is missing or was made by another version.
	recreate, exists bool
	// refusing are the sets of a table to be made anew by which its rules refuse:
	// see nft.Conn.Replace.
	refusing []string
	// wake: somebody has switched the table's hooks off.
	wake bool
	// chains are to be (re)written, drop are to go.
	chains []nft.Chain
	drop   []string
	// del and add hold elements, grouped by set.
	del nft.Batch
	add [numSets]nft.Batch

	// flat and loose are the elements that the table must have. Only what is
	// shared is in them when the table is fresh.
	flat  [numSets]*table
	loose map[elementID]nft.Element

	report backend.Report
}

// plan reads the kernel and compares.
func (f *family) plan(c *nft.Conn, want model.Desired) (*plan, error) {
	p := &plan{f: f, want: want, loose: map[elementID]nft.Element{}}
	for id, s := range sets(f.table) {
		if setID(id).flat() {
			p.flat[id] = newTable(s.KeyLen(), s.DataLen())
		}
	}
	have, err := f.read(c)
	if err != nil {
		return nil, err
	}
	p.exists = have.exists
	p.recreate = !have.compatible(f.table, &want.Node, f.fam)
	if p.recreate {
		have.chains = nil
		for _, id := range []setID{setClusterIPs, setLoadBalancerIPs} {
			if _, ok := have.sets[id.String()]; ok {
				p.refusing = append(p.refusing, id.String())
			}
		}
	}
	if have.dormant {
		p.wake = true
		p.drift()
	}
	if err := p.planChains(c, have); err != nil {
		return nil, err
	}
	if p.fresh() {
		return p, nil
	}
	p.everything(p.put)
	for id := range numSets {
		switch {
		case id.dynamic():
			continue // the kernel's own
		case p.recreate:
			p.addAll(id)
		case id.flat():
			err = p.compare(c, id)
		default:
			err = p.compareLoose(c, id)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// everything emits all elements that the table must have.
func (p *plan) everything(emit func(element)) {
	renderNode(&p.want.Node, p.f.fam, emit)
	for _, svc := range p.want.Services {
		p.f.render.service(svc, emit)
	}
}

// put takes note of an element and says nothing to the kernel.
func (p *plan) put(e element) { p.isNew(e) }

// isNew takes note of an element and says whether it is the first of its id.
func (p *plan) isNew(e element) bool {
	if e.set.flat() {
		fresh := p.flat[e.set].put(e.Key, e.Value)
		if fresh {
			p.report.Objects++
		}
		return fresh
	}
	id := e.id()
	if _, ok := p.loose[id]; ok {
		return false
	}
	p.loose[id] = e.Element
	if !e.set.classes() {
		p.report.Objects++
	}
	return true
}

// drift counts an object that is not as it should be.
func (p *plan) drift() { p.report.Drift++ }

// elementDrift counts it unless it may be about an element that was not read.
func (p *plan) elementDrift() {
	if p.settled {
		p.drift()
	}
}

func (p *plan) insert(set setID, e nft.Element) {
	p.add[set].AddElement(p.f.table, set.String(), e)
	p.report.Added++
}

func (p *plan) remove(set setID, e nft.Element) {
	p.del.DeleteElement(p.f.table, set.String(), e)
	p.report.Deleted++
}

// addAll adds a set's elements to a table that is made anew.
func (p *plan) addAll(set setID) {
	if set.flat() {
		t := p.flat[set]
		for i := range t.entries {
			p.insert(set, nft.Element{Key: string(t.key(i)), Value: string(t.value(i))})
		}
		return
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.loose), elementID.compare) {
		if id.set == set {
			p.insert(set, p.loose[id])
		}
	}
}

// compare brings a flat set to what it must have.
func (p *plan) compare(c *nft.Conn, set setID) error {
	t := p.flat[set]
	extra := map[string]bool{}
	settled, err := c.ReadElements(p.f.table, set.String(),
		func() {
			clear(extra)
			for i := range t.entries {
				t.entries[i].seen, t.entries[i].differs = false, false
			}
		},
		func(raw *nft.RawElement) bool {
			i := t.find(raw.Key)
			if i < 0 {
				again := extra[string(raw.Key)]
				extra[string(raw.Key)] = true
				return !again
			}
			e := &t.entries[i]
			again := e.seen
			e.seen, e.differs = true, string(raw.Value) != string(t.value(i))
			return !again
		})
	if err != nil {
		return err
	}
	p.settled = settled
	for i := range t.entries {
		e := &t.entries[i]
		if e.seen && !e.differs {
			continue
		}
		el := nft.Element{Key: string(t.key(i)), Value: string(t.value(i))}
		p.elementDrift()
		if e.seen {
			p.remove(set, el)
		}
		p.insert(set, el)
	}
	for key := range extra {
		p.elementDrift()
		p.remove(set, nft.Element{Key: key})
	}
	return nil
}

// compareLoose brings one of the other sets to what it must have.
func (p *plan) compareLoose(c *nft.Conn, set setID) error {
	have := map[elementID]nft.Element{}
	settled, err := c.ReadElements(p.f.table, set.String(), func() { clear(have) }, func(raw *nft.RawElement) bool {
		e := element{set, raw.Element()}
		_, again := have[e.id()]
		have[e.id()] = e.Element
		return !again
	})
	if err != nil {
		return err
	}
	p.settled = settled
	if set.ranges() {
		p.replaceRanges(set, have)
		return nil
	}
	for id, e := range p.loose {
		if id.set != set {
			continue
		}
		old, ok := have[id]
		delete(have, id)
		if ok && old.Value == e.Value {
			continue
		}
		p.elementDrift()
		if ok {
			p.remove(set, old)
		}
		p.insert(set, e)
	}
	for id, e := range have {
		p.del.DeleteElement(p.f.table, set.String(), e)
		if p.f.classes[id] {
			continue // no longer used, which is not worth a word
		}
		p.report.Deleted++
		p.elementDrift()
	}
	return nil
}

// replaceRanges writes a set of ranges anew if it differs.
func (p *plan) replaceRanges(set setID, have map[elementID]nft.Element) {
	var next []nft.Element
	old := slices.Collect(maps.Values(have))
	for id, e := range p.loose {
		if id.set == set {
			next = append(next, e)
		}
	}
	byKey := func(a, b nft.Element) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(old, byKey)
	slices.SortFunc(next, byKey)
	if slices.Equal(old, next) {
		return
	}
	p.elementDrift()
	p.report.Deleted += len(old)
	if len(old) > 0 {
		p.del.FlushSet(p.f.table, set.String())
	}
	for _, e := range next {
		p.insert(set, e)
	}
}

// planChains rewrites the chains whose rules are not in the form that the
// kernel gives to what they should be.
func (p *plan) planChains(c *nft.Conn, have *tableState) error {
	prog := &program{table: p.f.table, fam: p.f.fam, node: &p.want.Node}
	all := prog.chains()
	for _, k := range p.classesInUse() {
		all = append(all, prog.classChain(k.u, k.c))
	}
	if have.chains != nil {
		if err := p.f.learn(c, &p.want.Node, all); err != nil {
			return err
		}
	}
	expected := map[string]bool{}
	for _, ch := range all {
		expected[ch.Name] = true
		kernel := have.chains[ch.Name]
		if kernel != nil && !kernel.PolicyDrop && slices.Equal(kernel.Rules, p.f.form[ch.Name]) {
			continue
		}
		p.drift()
		p.chains = append(p.chains, ch)
	}
	unused := map[string]bool{}
	for id := range p.f.classes {
		if u, c, ok := classOf(element{id.set, nft.Element{Key: id.key}}); ok {
			unused[u.chain(c)] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if !expected[name] {
			p.drop = append(p.drop, name)
			if !unused[name] {
				p.drift()
			}
		}
	}
	return nil
}

// classesInUse are those that have a chain, sorted.
func (p *plan) classesInUse() []verdictKey {
	used := map[verdictKey]bool{}
	for _, u := range uses {
		for slots := 1; slots <= u.baseClasses(); slots++ {
			used[verdictKey{u, newClass(slots, 0)}] = true
		}
	}
	for _, svc := range p.want.Services {
		p.f.render.classes(svc, func(u use, c class) {
			if c != classReject && c != classDrop {
				used[verdictKey{u, c}] = true
			}
		})
	}
	return slices.SortedFunc(maps.Keys(used), func(a, b verdictKey) int {
		return cmp.Or(cmp.Compare(a.u.index(), b.u.index()), cmp.Compare(a.c, b.c))
	})
}

// learn finds out which form the kernel gives to the rules of chains: it has
// them made in a table of their own, without hooks and without elements, reads
// them back and deletes it. Thus a process that takes over from another need
// not write rules that are right, which would cost the kernel a walk over the
// maps for each chain.
func (f *family) learn(c *nft.Conn, node *model.Node, chains []nft.Chain) error {
	if !reflect.DeepEqual(f.formNode, node) {
		f.form, f.formNode = map[string][]nft.ReadRule{}, node
	}
	var unknown []nft.Chain
	for _, ch := range chains {
		if _, ok := f.form[ch.Name]; !ok {
			unknown = append(unknown, ch)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	t := nft.Table{Family: f.table.Family, Name: referenceName}
	var tx nft.Batch
	tx.AddTable(t) // so that the next finds one to delete
	tx.DeleteTable(t)
	tx.AddTable(t)
	for _, s := range sets(t) {
		tx.AddSet(s)
	}
	// All of them, as they go to each other.
	for _, ch := range chains {
		tx.AddChain(nft.Chain{Table: t, Name: ch.Name})
	}
	for _, ch := range unknown {
		for _, r := range ch.Rules {
			tx.AppendRule(t, ch.Name, r)
		}
	}
	if err := c.Commit(&tx); err != nil {
		return fmt.Errorf("make reference rules: %w", err)
	}
	made, err := c.Chains(t)
	var end nft.Batch
	end.DeleteTable(t)
	if err := errors.Join(err, c.Commit(&end)); err != nil {
		return fmt.Errorf("read reference rules: %w", err)
	}
	for _, ch := range unknown {
		if m := made[ch.Name]; m != nil {
			f.form[ch.Name] = m.Rules
		}
	}
	return nil
}

// fresh says that there is no table yet.
func (p *plan) fresh() bool { return p.recreate && !p.exists }

func (p *plan) create(tx *nft.Batch) {
	tx.AddTable(p.f.table)
	for _, s := range sets(p.f.table) {
		tx.AddSet(s)
	}
}

// write puts the plan, or what fill left of it, into a transaction. Chains
// are made before rules that go to them; rules are rewritten and elements
// replaced in one commit, so that no packet sees less than the old or the new
// state.
func (p *plan) write(tx *nft.Batch) {
	t := p.f.table
	if p.fresh() {
		for _, ch := range p.chains {
			if ch.Hook != nil {
				writeChain(tx, ch)
			}
		}
		return
	}
	if p.recreate {
		for _, set := range p.refusing {
			tx.FlushSet(t, set)
		}
		tx.DeleteTable(t)
		p.create(tx)
	}
	if p.wake {
		tx.AddTable(t)
	}
	for _, ch := range p.chains {
		tx.AddChain(ch)
		tx.FlushChain(t, ch.Name)
	}
	for _, name := range p.drop {
		tx.FlushChain(t, name)
	}
	tx.Append(&p.del)
	for _, ch := range p.chains {
		tx.AppendRules(ch)
	}
	for i := range p.add {
		tx.Append(&p.add[i])
	}
	for _, name := range p.drop {
		tx.DeleteChain(t, name)
	}
}

// tableState is what the kernel has in one table, but for the elements.
type tableState struct {
	exists, dormant bool
	chains          map[string]*nft.ReadChain
	sets            map[string]nft.ReadSet
}

func (f *family) read(c *nft.Conn) (*tableState, error) {
	s := &tableState{}
	var err error
	if s.exists, s.dormant, err = c.Dormant(f.table); err != nil || !s.exists {
		return s, err
	}
	if s.chains, err = c.Chains(f.table); err != nil {
		return nil, err
	}
	if s.sets, err = c.Sets(f.table); err != nil {
		return nil, err
	}
	return s, nil
}

// compatible says whether the table can be kept: its sets and hooks are those
// that this version makes.
func (s *tableState) compatible(t nft.Table, node *model.Node, fam model.Family) bool {
	if !s.exists {
		return false
	}
	want := sets(t)
	for _, w := range want {
		if have, ok := s.sets[w.Name]; !ok || !have.Same(w) {
			return false
		}
	}
	prog := &program{table: t, fam: fam, node: node}
	for _, ch := range prog.chains() {
		have := s.chains[ch.Name]
		if have == nil {
			continue
		}
		if (have.Hook == nil) != (ch.Hook == nil) || have.Hook != nil && *have.Hook != *ch.Hook {
			return false
		}
	}
	return len(s.sets) == len(want)
}

// adopt takes note of a plan that the kernel has accepted.
func (f *family) adopt(p *plan) {
	f.refs, f.classes = map[elementID]int{}, map[elementID]bool{}
	for id, t := range p.flat {
		if t != nil && setID(id).shared() {
			for i, e := range t.entries {
				f.refs[elementID{setID(id), string(t.key(i))}] = int(e.count)
			}
		}
	}
	for id := range p.loose {
		if id.set.classes() {
			f.classes[id] = true
		}
	}
	f.objects = p.report.Objects
}
