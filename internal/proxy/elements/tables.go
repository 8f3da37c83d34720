// SPDX-License-Identifier: Apache-2.0

package elements

import (
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Tables writes the tables of a mode and reads them back.
type Tables[S Set] struct {
	Conn *nft.Conn
	// Table returns a family's table, Sets its sets by their numbers.
	Table func(model.Family) nft.Table
	Sets  func(model.Family) []nft.Set
	// Refusing are the sets whose elements the rules refuse: see nft.Conn.Replace.
	Refusing []S
	// written recognises rules that another process has changed: it is what the
	// kernel listed right after they were written.
	written map[nft.Table]string
}

// Intact reports whether the chains and rules of a table are as the last Commit left
// them.
func (t *Tables[S]) Intact(table nft.Table) (bool, error) {
	chains, err := t.Conn.Chains(table)
	if err != nil {
		return false, err
	}
	found := nft.Fingerprint(chains)
	return found != "" && found == t.written[table], nil
}

// Read adds the elements that the kernel has of a family to found, as far as their
// sets are there. whole reports whether all sets are.
func (t *Tables[S]) Read(found Map[S], f model.Family) (whole bool, err error) {
	have, err := t.Conn.Sets(t.Table(f))
	if err != nil {
		return false, err
	}
	whole = true
	for i, set := range t.Sets(f) {
		if !have[set.Name].Same(set) {
			whole = false
			continue
		}
		err := t.Conn.Elements(set.Table, set.Name, func(e nft.Element) {
			found[ID[S]{Family: f, Set: S(i), Key: e.Key, KeyEnd: e.KeyEnd, End: e.End}] = e.Value
		})
		if err != nil {
			return false, err
		}
	}
	return whole, nil
}

// Build adds to tx that a table has these sets, without elements, and these chains,
// in place of what it has.
func (t *Tables[S]) Build(tx *nft.Batch, table nft.Table, sets []nft.Set, chains []nft.Chain) error {
	refusing := make([]string, 0, len(t.Refusing))
	for _, s := range t.Refusing {
		refusing = append(refusing, s.String())
	}
	if err := t.Conn.Replace(tx, table, refusing...); err != nil {
		return err
	}
	for _, s := range sets {
		tx.AddSet(s)
	}
	for _, c := range chains {
		tx.AddChain(c)
		tx.AppendRules(c)
	}
	return nil
}

// Edit adds edits, sorted, to tx. Those of a table that tx builds again are all of
// its elements.
func (t *Tables[S]) Edit(tx *nft.Batch, edits []Edit[S], built func(nft.Table) bool) {
	for _, e := range edits {
		if table := t.Table(e.Key.Family); e.Had && !built(table) {
			tx.DeleteElement(table, e.Key.Set.String(), e.Key.Element(""))
		}
	}
	for _, e := range edits {
		if e.Has {
			tx.AddElement(t.Table(e.Key.Family), e.Key.Set.String(), e.Key.Element(e.New))
		}
	}
}

// Commit commits tx, which builds some tables again.
func (t *Tables[S]) Commit(tx *nft.Batch, built []nft.Table) error {
	if err := t.Conn.Commit(tx); err != nil {
		return err
	}
	if t.written == nil {
		t.written = map[nft.Table]string{}
	}
	for _, table := range built {
		chains, err := t.Conn.Chains(table)
		if err != nil {
			return err
		}
		t.written[table] = nft.Fingerprint(chains)
	}
	return nil
}

// Remove deletes tables; absent ones are no error.
func (t *Tables[S]) Remove(tables ...nft.Table) error {
	for _, table := range tables {
		delete(t.written, table)
	}
	return t.Conn.RemoveTables(tables...)
}
