// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// edit is the change of one element.
type edit struct {
	id         elementID
	value      string
	had, wants bool // whether the element is there before and after
}

// tables are the nf_tables tables of the package.
type tables struct {
	conn     *nft.Conn
	families []model.Family
	// print recognises rules that somebody else has changed: what the kernel
	// listed right after they were written.
	print map[model.Family]string
}

func newTables(families []model.Family) (*tables, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	return &tables{conn: conn, families: families, print: map[model.Family]string{}}, nil
}

// read returns the elements that the kernel has, and the families whose tables
// are otherwise not as the last commit left them.
func (t *tables) read() (elements, []model.Family, error) {
	found := elements{}
	var broken []model.Family
	for _, f := range t.families {
		chains, err := t.conn.Chains(tableOf(f))
		if err != nil {
			return nil, nil, err
		}
		intact, err := t.readElements(found, f)
		if err != nil {
			return nil, nil, err
		}
		if p := fingerprint(chains); p == "" || p != t.print[f] || !intact {
			broken = append(broken, f)
		}
	}
	return found, broken, nil
}

// readElements says whether all sets are there.
func (t *tables) readElements(found elements, f model.Family) (intact bool, err error) {
	have, err := t.conn.Sets(tableOf(f))
	if err != nil {
		return false, err
	}
	intact = true
	for id, set := range setsOf(f) {
		if !have[set.Name].Same(set) {
			intact = false
			continue
		}
		err := t.conn.Elements(set.Table, set.Name, func(e nft.Element) {
			found[elementID{family: f, set: setID(id), key: e.Key, keyEnd: e.KeyEnd, end: e.End}] = e.Value
		})
		if err != nil {
			return false, err
		}
	}
	return intact, nil
}

// fingerprint of a table's chains; "" if there are none.
func fingerprint(chains map[string]*nft.ReadChain) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		c := chains[name]
		fmt.Fprintf(&b, "%s\n", name)
		if c.Hook != nil {
			fmt.Fprintf(&b, "%+v\n", *c.Hook)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "%q %q\n", r.Exprs, r.UserData)
		}
	}
	return b.String()
}

// commit makes one transaction of edits, and of the programs whose tables are
// to be built anew. The elements of such a table are all among the edits.
func (t *tables) commit(rebuild []*program, edits []edit) error {
	edits = slices.SortedFunc(slices.Values(edits), func(a, b edit) int { return a.id.compare(b.id) })
	var tx nft.Batch
	anew := map[model.Family]bool{}
	for _, p := range rebuild {
		anew[p.fam] = true
		if err := t.build(&tx, p); err != nil {
			return err
		}
	}
	for _, e := range edits {
		if e.had && !anew[e.id.family] {
			tx.DeleteElement(tableOf(e.id.family), e.id.set.String(), e.id.element(""))
		}
	}
	for _, e := range edits {
		if e.wants {
			tx.AddElement(tableOf(e.id.family), e.id.set.String(), e.id.element(e.value))
		}
	}
	if tx.Len() == 0 {
		return nil
	}
	if err := t.conn.Commit(&tx); err != nil {
		return err
	}
	for f := range anew {
		chains, err := t.conn.Chains(tableOf(f))
		if err != nil {
			return err
		}
		t.print[f] = fingerprint(chains)
	}
	return nil
}

// build makes an empty table with its rules, in place of any that is there.
func (t *tables) build(tx *nft.Batch, p *program) error {
	if err := t.conn.Replace(tx, tableOf(p.fam), setClusterIPs.String(), setLoadBalancerIPs.String()); err != nil {
		return err
	}
	for _, s := range setsOf(p.fam) {
		tx.AddSet(s)
	}
	for _, c := range p.chains() {
		tx.AddChain(c)
		tx.AppendRules(c)
	}
	return nil
}

// remove deletes the tables; absent ones are no error.
func (t *tables) remove() error {
	var all []nft.Table
	for _, f := range t.families {
		all = append(all, tableOf(f))
	}
	clear(t.print)
	return t.conn.RemoveTables(all...)
}

func (t *tables) close() error { return t.conn.Close() }
