// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// edit is the change of one element.
type edit = elements.Edit[setID]

// tables are the nf_tables tables of the package.
type tables struct {
	elements.Tables[setID]
	families []model.Family
}

func newTables(conn *nft.Conn, families []model.Family) *tables {
	return &tables{elements.Tables[setID]{Conn: conn, Table: tableOf, Sets: sets, Refusing: []setID{setAddresses}}, families}
}

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
		intact, err := t.Intact(table)
		if err != nil {
			return s, err
		}
		if !intact {
			s.rebuild = append(s.rebuild, table)
		}
	}
	for _, f := range t.families {
		whole, err := t.Read(s.elements, f)
		if err != nil {
			return s, err
		}
		if !whole && !slices.Contains(s.rebuild, tableOf(f)) {
			s.rebuild = append(s.rebuild, tableOf(f))
		}
	}
	if !slices.Contains(t.families, model.IPv4) || slices.Contains(s.rebuild, arpTable) {
		return s, nil
	}
	if slices.Contains(s.rebuild, tableOf(model.IPv4)) {
		s.rebuild = append(s.rebuild, arpTable) // it has a copy of what is written again
		return s, nil
	}
	return s, t.compareARP(&s)
}

// compareARP checks that the copy of the addresses is one.
func (t *tables) compareARP(s *state) error {
	var have, want []string
	err := t.Conn.Elements(arpTable, arpSet.Name, func(e nft.Element) { have = append(have, e.Key) })
	if err != nil {
		return err
	}
	for id := range s.elements {
		if mirrored(id) {
			want = append(want, id.Key)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		s.rebuild = append(s.rebuild, arpTable)
	}
	return nil
}

// commit makes one transaction of edits, sorted, and of the tables to build again.
// Elements of a rebuilt table that are to stay are edits too.
func (t *tables) commit(node *model.Node, rebuild []nft.Table, edits []edit) error {
	var tx nft.Batch
	for _, table := range rebuild {
		sets, chains := t.contents(table, node)
		if err := t.Build(&tx, table, sets, chains); err != nil {
			return err
		}
	}
	built := func(table nft.Table) bool { return slices.Contains(rebuild, table) }
	t.Edit(&tx, edits, built)
	for _, e := range edits {
		if mirrored(e.Key) && e.Had && !built(arpTable) {
			tx.DeleteElement(arpTable, arpSet.Name, e.Key.Element(""))
		}
		if mirrored(e.Key) && e.Has {
			tx.AddElement(arpTable, arpSet.Name, e.Key.Element(""))
		}
	}
	return t.Commit(&tx, rebuild)
}

// mirrored reports whether the element is in the arp table too.
func mirrored(id elementID) bool { return id.Set == setAddresses && id.Family == model.IPv4 }

// contents are the sets and chains of a table.
func (t *tables) contents(table nft.Table, node *model.Node) ([]nft.Set, []nft.Chain) {
	for _, f := range t.families {
		p := program{fam: f, node: node}
		switch table {
		case tableOf(f):
			return sets(f), p.chains()
		case repliesOf(f):
			return nil, p.replies()
		}
	}
	return []nft.Set{arpSet}, []nft.Chain{arpChain()}
}

// remove deletes the tables; absent ones are no error.
func (t *tables) remove() error { return t.Remove(tablesFor(t.families)...) }

// retire deletes those that concern new connections. The one that keeps ARP quiet
// is needed as long as there are routes, and replies as long as there are
// connections.
func (t *tables) retire() error {
	var out []nft.Table
	for _, f := range t.families {
		out = append(out, tableOf(f))
	}
	return t.Remove(out...)
}
