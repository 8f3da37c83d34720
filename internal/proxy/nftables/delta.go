// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"maps"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// delta is the difference that changed Services make to one table.
type delta struct {
	// del and add are elements that only one Service can have. The map's key
	// makes a frontend that moves between Services meet itself.
	del, add map[elementID]element
	// refs is how the number of times that Services have an element changes.
	refs map[elementID]refChange
}

type refChange struct {
	by int
	e  element
}

func newDelta() *delta {
	return &delta{del: map[elementID]element{}, add: map[elementID]element{}, refs: map[elementID]refChange{}}
}

// service adds the step from old to next; either may be nil.
func (d *delta) service(r *renderer, old, next *model.Service) {
	if old != nil {
		r.service(old, func(e element) { d.count(e, -1) })
	}
	if next != nil {
		r.service(next, func(e element) { d.count(e, +1) })
	}
}

func (d *delta) count(e element, by int) {
	id := e.id()
	switch {
	case e.set.shared():
		r := d.refs[id]
		d.refs[id] = refChange{r.by + by, e}
	case by < 0:
		// What another changed Service has taken over in the meantime stays in
		// add; both are needed to replace the value.
		d.del[id] = e
	default:
		d.add[id] = e
	}
}

// settle drops pairs that change nothing.
func (d *delta) settle() {
	for id, e := range d.add {
		if old, ok := d.del[id]; ok && old.Value == e.Value {
			delete(d.add, id)
			delete(d.del, id)
		}
	}
}

// family is one table and what is known to be in it.
type family struct {
	fam    model.Family
	table  nft.Table
	render *renderer
	// refs counts how often the Services have each shared element.
	refs map[elementID]int
	// classes are the elements of the classes maps. They only ever grow between
	// full syncs.
	classes map[elementID]bool
	// form is how the kernel gives back each chain's rules, for a node like
	// formNode; see learn.
	form     map[string][]nft.ReadRule
	formNode *model.Node
	// objects is the number of elements, not counting those of the classes maps.
	objects int
}

// write puts a delta into a transaction. Elements go before they come, so
// that a key can change its value; a class's chain comes before the element
// that leads to it.
func (f *family) write(tx *nft.Batch, d *delta, node *model.Node) {
	d.settle()
	p := &program{table: f.table, fam: f.fam, node: node}
	added, deleted := f.shared(d)
	for _, e := range sorted(d.del) {
		tx.DeleteElement(f.table, e.set.String(), e.Element)
	}
	for _, e := range deleted {
		tx.DeleteElement(f.table, e.set.String(), e.Element)
	}
	for _, e := range added {
		if u, c, ok := classOf(e); ok {
			ch := p.classChain(u, c)
			writeChain(tx, ch)
		}
	}
	for _, e := range added {
		tx.AddElement(f.table, e.set.String(), e.Element)
	}
	for _, e := range sorted(d.add) {
		tx.AddElement(f.table, e.set.String(), e.Element)
	}
}

func writeChain(tx *nft.Batch, ch nft.Chain) {
	tx.AddChain(ch)
	tx.AppendRules(ch)
}

// shared gives the shared elements that come and go.
func (f *family) shared(d *delta) (added, deleted []element) {
	for _, id := range slices.SortedFunc(maps.Keys(d.refs), elementID.compare) {
		r := d.refs[id]
		had := f.refs[id]
		if id.set.classes() {
			if r.by > 0 && !f.classes[id] {
				added = append(added, r.e)
			}
			continue
		}
		switch has := had + r.by; {
		case had == 0 && has > 0:
			added = append(added, r.e)
		case had > 0 && has == 0:
			deleted = append(deleted, r.e)
		}
	}
	return added, deleted
}

func (id elementID) compare(o elementID) int {
	if id.set != o.set {
		return int(id.set) - int(o.set)
	}
	return strings.Compare(id.key, o.key)
}

// sorted groups elements by set, which makes for few messages.
func sorted(m map[elementID]element) []element {
	es := make([]element, 0, len(m))
	for _, id := range slices.SortedFunc(maps.Keys(m), elementID.compare) {
		es = append(es, m[id])
	}
	return es
}

// classOf decodes an element of a classes map whose class has a chain.
func classOf(e element) (use, class, bool) {
	if !e.set.classes() {
		return use{}, 0, false
	}
	c := decodeClass(e.Key)
	return uses[e.set-setClasses], c, c != classReject && c != classDrop
}

// applied takes note of a delta that the kernel has accepted.
func (f *family) applied(d *delta) backend.Report {
	added, deleted := f.shared(d)
	r := backend.Report{Added: len(d.add), Deleted: len(d.del) + len(deleted)}
	for _, e := range added {
		if e.set.classes() {
			f.classes[e.id()] = true
		} else {
			r.Added++
		}
	}
	for id, c := range d.refs {
		if id.set.classes() {
			continue
		}
		if n := f.refs[id] + c.by; n > 0 {
			f.refs[id] = n
		} else {
			delete(f.refs, id)
		}
	}
	f.objects += r.Added - r.Deleted
	r.Objects = f.objects
	return r
}
