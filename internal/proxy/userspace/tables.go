// SPDX-License-Identifier: Apache-2.0

package userspace

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
	refusing := []setID{setClusterIPs, setLoadBalancerIPs}
	return &tables{elements.Tables[setID]{Conn: conn, Table: tableOf, Sets: setsOf, Refusing: refusing}, families}
}

// read returns the elements that the kernel has, and the families whose tables
// are otherwise not as the last commit left them.
func (t *tables) read() (elements.Map[setID], []model.Family, error) {
	found := elements.Map[setID]{}
	var broken []model.Family
	for _, f := range t.families {
		intact, err := t.Intact(tableOf(f))
		if err != nil {
			return nil, nil, err
		}
		whole, err := t.Read(found, f)
		if err != nil {
			return nil, nil, err
		}
		if !intact || !whole {
			broken = append(broken, f)
		}
	}
	return found, broken, nil
}

// commit makes one transaction of edits, and of the programs whose tables are
// to be built again. The elements of such a table are all among the edits.
func (t *tables) commit(rebuild []*program, edits []edit) error {
	slices.SortFunc(edits, func(a, b edit) int { return a.Key.Compare(b.Key) })
	var tx nft.Batch
	var built []nft.Table
	for _, p := range rebuild {
		built = append(built, tableOf(p.fam))
		if err := t.Build(&tx, tableOf(p.fam), setsOf(p.fam), p.chains()); err != nil {
			return err
		}
	}
	t.Edit(&tx, edits, func(table nft.Table) bool { return slices.Contains(built, table) })
	return t.Commit(&tx, built)
}

// yield has the tables that are there drop what they capture of this node's TCP.
func (t *tables) yield() error {
	var tx nft.Batch
	for _, f := range t.families {
		table := tableOf(f)
		there, err := t.Conn.Tables(table.Family)
		if err != nil {
			return err
		}
		if !slices.Contains(there, table.Name) {
			continue
		}
		chain := (&program{fam: f}).yielded()
		tx.FlushChain(table, chain.Name)
		tx.AppendRules(chain)
	}
	return t.Conn.Commit(&tx)
}

// remove deletes the tables; absent ones are no error.
func (t *tables) remove() error {
	var all []nft.Table
	for _, f := range t.families {
		all = append(all, tableOf(f))
	}
	return t.Remove(all...)
}
