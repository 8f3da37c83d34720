// SPDX-License-Identifier: Apache-2.0

package ipvs

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
	id       elementID
	old, new string
	// had and has say whether the element is there before and after.
	had, has bool
}

// tables are the nf_tables tables of the package.
type tables struct {
	conn     *nft.Conn
	families []model.Family
	// print recognises rules that somebody else has changed: what the kernel
	// listed right after they were written.
	print map[nft.Table]string
}

func newTables(families []model.Family) (*tables, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, err
	}
	return &tables{conn: conn, families: families, print: map[nft.Table]string{}}, nil
}

func (t *tables) close() error { return t.conn.Close() }

// state is what the kernel has.
type state struct {
	elements map[elementID]string
	// rebuild are the tables that are not as they must be, apart from elements.
	// Their elements are in the map above, as far as they could be read: they
	// remember which marks are in use.
	rebuild []nft.Table
}

// read compares the tables with what the last commit left and reads their
// elements.
func (t *tables) read() (state, error) {
	s := state{elements: map[elementID]string{}}
	for _, table := range tablesFor(t.families) {
		chains, err := t.conn.Chains(table)
		if err != nil {
			return s, err
		}
		if p := fingerprint(chains); p == "" || p != t.print[table] {
			s.rebuild = append(s.rebuild, table)
		}
	}
	for _, f := range t.families {
		if err := t.readElements(&s, f); err != nil {
			return s, err
		}
	}
	if !slices.Contains(t.families, model.IPv4) || slices.Contains(s.rebuild, arpTable) {
		return s, nil
	}
	if slices.Contains(s.rebuild, tableOf(model.IPv4)) {
		s.rebuild = append(s.rebuild, arpTable) // it has a copy of what is written anew
		return s, nil
	}
	return s, t.compareARP(&s)
}

func (t *tables) readElements(s *state, f model.Family) error {
	table := tableOf(f)
	have, err := t.conn.Sets(table)
	if err != nil {
		return err
	}
	for id, set := range sets(f) {
		if !have[set.Name].Same(set) {
			if !slices.Contains(s.rebuild, table) {
				s.rebuild = append(s.rebuild, table)
			}
			continue
		}
		err := t.conn.Elements(table, set.Name, func(e nft.Element) {
			s.elements[elementID{family: f, set: setID(id), key: e.Key, keyEnd: e.KeyEnd, end: e.End}] = e.Value
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compareARP checks that the copy of the addresses is one.
func (t *tables) compareARP(s *state) error {
	seen := 0
	same := true
	err := t.conn.Elements(arpTable, arpSet.Name, func(e nft.Element) {
		_, ok := s.elements[elementID{family: model.IPv4, set: setAddresses, key: e.Key}]
		same = same && ok
		seen++
	})
	if err != nil {
		return err
	}
	for id := range s.elements {
		if id.family == model.IPv4 && id.set == setAddresses {
			seen--
		}
	}
	if !same || seen != 0 {
		s.rebuild = append(s.rebuild, arpTable)
	}
	return nil
}

// fingerprint of a table's chains; "" if there are none.
func fingerprint(chains map[string]*nft.ReadChain) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		c := chains[name]
		fmt.Fprintf(&b, "%s %+v\n", name, c.Hook)
		if c.Hook != nil {
			fmt.Fprintf(&b, "%+v\n", *c.Hook)
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "%q %q\n", r.Exprs, r.UserData)
		}
	}
	return b.String()
}

// commit makes one transaction of edits and of the tables to build anew.
// Elements of a rebuilt table that are to stay are edits too.
func (t *tables) commit(node *model.Node, rebuild []nft.Table, edits []edit) error {
	var tx nft.Batch
	for _, table := range rebuild {
		if err := t.build(&tx, table, node); err != nil {
			return err
		}
	}
	for _, e := range edits {
		if e.had && !slices.Contains(rebuild, tableOf(e.id.family)) {
			tx.DeleteElement(tableOf(e.id.family), e.id.set.String(), e.id.element(""))
		}
		if e.had && e.mirrored() && !slices.Contains(rebuild, arpTable) {
			tx.DeleteElement(arpTable, arpSet.Name, e.id.element(""))
		}
	}
	for _, e := range edits {
		if e.has {
			tx.AddElement(tableOf(e.id.family), e.id.set.String(), e.id.element(e.new))
		}
		if e.has && e.mirrored() {
			tx.AddElement(arpTable, arpSet.Name, e.id.element(""))
		}
	}
	if err := t.conn.Commit(&tx); err != nil {
		return err
	}
	for _, table := range rebuild {
		chains, err := t.conn.Chains(table)
		if err != nil {
			return err
		}
		t.print[table] = fingerprint(chains)
	}
	return nil
}

// mirrored says that the element is in the arp table too.
func (e edit) mirrored() bool { return e.id.set == setAddresses && e.id.family == model.IPv4 }

// build makes an empty table with its rules, in place of any that is there.
func (t *tables) build(tx *nft.Batch, table nft.Table, node *model.Node) error {
	if err := t.conn.Replace(tx, table, setAddresses.String()); err != nil {
		return err
	}
	var chains []nft.Chain
	if table == arpTable {
		tx.AddSet(arpSet)
		chains = []nft.Chain{arpChain()}
	}
	for _, f := range t.families {
		if repliesOf(f) == table {
			p := program{fam: f, node: node}
			chains = p.replies()
		}
		if tableOf(f) != table {
			continue
		}
		for _, s := range sets(f) {
			tx.AddSet(s)
		}
		p := program{fam: f, node: node}
		chains = p.chains()
	}
	for _, c := range chains {
		tx.AddChain(c)
		tx.AppendRules(c)
	}
	return nil
}

// remove deletes the tables; absent ones are no error.
func (t *tables) remove() error { return t.delete(tablesFor(t.families)) }

// retire deletes those that concern new connections. The one that keeps ARP quiet
// is needed as long as there are routes, and replies as long as there are
// connections.
func (t *tables) retire() error {
	var out []nft.Table
	for _, f := range t.families {
		out = append(out, tableOf(f))
	}
	return t.delete(out)
}

func (t *tables) delete(all []nft.Table) error { return t.conn.RemoveTables(all...) }
