// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
)

func decodeClass(key string) class { return class(binary.NativeEndian.Uint32([]byte(key))) }

// plan is what a full sync will do to one table.
type plan struct {
	f *family
	// recreate: the table is missing or was made by another version.
	recreate, exists bool
	// chains are to be (re)written, drop are to go.
	chains []chain
	known  map[string]bool
	drop   []string
	// del and add hold elements, grouped by set.
	del nfnl.Batch
	add [numSets]nfnl.Batch

	refs   map[elementID]int
	report backend.Report
}

// plan reads the kernel and compares. expected are elements whose difference
// is no drift; nil means that nothing can be drift.
func (f *family) plan(c *nfnl.Conn, want model.Desired, expected map[elementID]bool) (*plan, error) {
	p := &plan{f: f, refs: map[elementID]int{}, known: map[string]bool{}}
	have, err := f.read(c)
	if err != nil {
		return nil, err
	}
	p.exists = have.exists
	p.recreate = !have.compatible(f.table, &want.Node, f.fam)
	if p.recreate {
		have.elements = nil
		have.chains = nil
	}
	drift := func(id elementID) {
		if expected != nil && !expected[id] {
			p.report.Drift++
		}
	}
	ranges := map[elementID]nfnl.Element{}
	emit := func(e element) {
		if e.set.ranges() {
			ranges[e.id()] = e.Element
			return
		}
		p.element(have.elements, e, drift)
	}
	renderNode(&want.Node, f.fam, emit)
	for _, name := range slices.SortedFunc(maps.Keys(want.Services), compareNames) {
		render(want.Services[name], f.fam, emit)
	}
	for _, set := range []setID{setLocalPods, setNodePortAddresses} {
		p.replaceRanges(set, have.elements, ranges, drift)
	}
	for id, e := range have.elements {
		p.del.DeleteElement(f.table, id.set.String(), e)
		if f.classes[id] {
			continue // no longer used, which is not worth a word
		}
		p.report.Deleted++
		drift(id)
	}
	p.planChains(have, &want.Node, expected != nil)
	return p, nil
}

// element takes e off what the kernel has, or adds it.
func (p *plan) element(have map[elementID]nfnl.Element, e element, drift func(elementID)) {
	id := e.id()
	if e.set.shared() {
		p.refs[id]++
		if p.refs[id] > 1 {
			return
		}
	}
	if !e.set.classes() {
		p.report.Objects++
	}
	old, ok := have[id]
	delete(have, id)
	if ok && old.Value == e.Value {
		return
	}
	if ok {
		p.del.DeleteElement(p.f.table, e.set.String(), old)
		p.report.Deleted++
	}
	drift(id)
	p.add[e.set].AddElement(p.f.table, e.set.String(), e.Element)
	p.report.Added++
}

// replaceRanges writes a set of ranges anew if it differs.
func (p *plan) replaceRanges(set setID, have, want map[elementID]nfnl.Element, drift func(elementID)) {
	var old, next []nfnl.Element
	for id, e := range have {
		if id.set == set {
			old = append(old, e)
			delete(have, id)
		}
	}
	for id, e := range want {
		if id.set == set {
			next = append(next, e)
		}
	}
	byKey := func(a, b nfnl.Element) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(old, byKey)
	slices.SortFunc(next, byKey)
	p.report.Objects += len(next)
	if slices.Equal(old, next) {
		return
	}
	drift(elementID{set: set})
	p.report.Deleted += len(old)
	p.report.Added += len(next)
	if len(old) > 0 {
		p.del.FlushSet(p.f.table, set.String())
	}
	for _, e := range next {
		p.add[set].AddElement(p.f.table, set.String(), e)
	}
}

// planChains rewrites the chains whose rules are not in the form that this
// process has seen the kernel give for them.
func (p *plan) planChains(have *tableState, node *model.Node, compare bool) {
	prog := &program{table: p.f.table, fam: p.f.fam, node: node}
	all := prog.chains()
	for id := range p.refs {
		if u, c, ok := classOf(element{id.set, nfnl.Element{Key: id.key}}); ok {
			all = append(all, prog.classChain(u, c))
		}
	}
	for _, ch := range all {
		p.known[ch.Name] = true
		kernel := have.chains[ch.Name]
		form, seen := p.f.form[ch.Name]
		if kernel != nil && seen && compare && slices.Equal(kernel.Rules, form) {
			continue
		}
		if compare && seen {
			p.report.Drift++
		}
		p.chains = append(p.chains, ch)
	}
	unused := map[string]bool{}
	for id := range p.f.classes {
		if u, c, ok := classOf(element{id.set, nfnl.Element{Key: id.key}}); ok {
			unused[u.chain(c)] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.chains)) {
		if !p.known[name] {
			p.drop = append(p.drop, name)
			if compare && !unused[name] {
				p.report.Drift++
			}
		}
	}
}

// fillMessages is how many messages of elements, of 400 each, one transaction
// of a fresh table carries.
const fillMessages = 50

// fresh says that there is no table yet.
func (p *plan) fresh() bool { return p.recreate && !p.exists }

// fill makes a fresh table but for the chains that hang on hooks, in several
// transactions: nothing of it is visible to packets yet, and the kernel gets
// the time to let its hash tables grow, which it does in the background.
func (p *plan) fill(c *nfnl.Conn) error {
	var tx nfnl.Batch
	p.create(&tx)
	for _, ch := range p.chains {
		if ch.Hook == nil {
			tx.AddChain(ch.Chain)
		}
	}
	for _, ch := range p.chains {
		if ch.Hook == nil {
			appendRules(&tx, ch)
		}
	}
	if err := c.Commit(&tx); err != nil {
		return err
	}
	for i := range p.add {
		for chunk := range p.add[i].Chunks(fillMessages) {
			if err := c.Commit(chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) create(tx *nfnl.Batch) {
	tx.AddTable(p.f.table)
	for _, s := range sets(p.f.table) {
		tx.AddSet(s)
	}
}

func appendRules(tx *nfnl.Batch, ch chain) {
	for _, r := range ch.rules {
		tx.AppendRule(ch.Table, ch.Name, r)
	}
}

// write puts the plan, or what fill left of it, into a transaction. Chains
// are made before rules that go to them; rules are rewritten and elements
// replaced in one commit, so that no packet sees less than the old or the new
// state.
func (p *plan) write(tx *nfnl.Batch) {
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
		tx.DeleteTable(t)
		p.create(tx)
	}
	for _, ch := range p.chains {
		tx.AddChain(ch.Chain)
		tx.FlushChain(t, ch.Name)
	}
	for _, name := range p.drop {
		tx.FlushChain(t, name)
	}
	tx.Append(&p.del)
	for _, ch := range p.chains {
		appendRules(tx, ch)
	}
	for i := range p.add {
		tx.Append(&p.add[i])
	}
	for _, name := range p.drop {
		tx.DeleteChain(t, name)
	}
}

// tableState is what the kernel has in one table.
type tableState struct {
	exists   bool
	chains   map[string]*nfnl.ReadChain
	sets     map[string]nfnl.ReadSet
	elements map[elementID]nfnl.Element
}

func (f *family) read(c *nfnl.Conn) (*tableState, error) {
	tables, err := c.Tables(f.table.Family)
	if err != nil {
		return nil, err
	}
	s := &tableState{elements: map[elementID]nfnl.Element{}}
	if !slices.Contains(tables, f.table.Name) {
		return s, nil
	}
	s.exists = true
	if s.chains, err = c.Chains(f.table); err != nil {
		return nil, err
	}
	if s.sets, err = c.Sets(f.table); err != nil {
		return nil, err
	}
	for id := range numSets {
		if id.dynamic() {
			continue // the kernel's own
		}
		err := c.Elements(f.table, id.String(), func(e nfnl.Element) {
			k := element{id, e}
			s.elements[k.id()] = e
		})
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// compatible says whether the table can be kept: its sets and hooks are those
// that this version makes.
func (s *tableState) compatible(t nfnl.Table, node *model.Node, fam model.Family) bool {
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
func (f *family) adopt(c *nfnl.Conn, p *plan) error {
	f.refs, f.classes = map[elementID]int{}, map[elementID]bool{}
	for id, n := range p.refs {
		if id.set.classes() {
			f.classes[id] = true
		} else {
			f.refs[id] = n
		}
	}
	f.objects = p.report.Objects
	if len(p.chains) == 0 {
		return nil
	}
	chains, err := c.Chains(f.table)
	if err != nil {
		return err
	}
	f.form = make(map[string][]nfnl.ReadRule, len(chains))
	for name, ch := range chains {
		f.form[name] = ch.Rules
	}
	return nil
}
