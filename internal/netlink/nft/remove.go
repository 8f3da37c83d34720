// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// RemoveTables deletes tables, all of them or none; absent ones are no error. No
// packet meets a part of one.
//
// The deletion of a whole table would not do: from when it takes effect until the
// kernel has taken the last chain off its hook, which is milliseconds with many
// rules, the rules go on, maps have no elements any more, and sets still have
// theirs (seen on Linux 6.1 and 6.18). A rule set that looks up who serves an
// address in a map, and what it refuses in a set, then refuses everybody.
//
// So first the chains are taken off their hooks, those that refuse before those
// that translate, with all that they look up still there. Those of postrouting
// stay until the packets that came in before that have left.
func (c *Conn) RemoveTables(tables ...Table) error {
	var unhook, remove Batch
	for _, t := range tables {
		chains, err := c.Chains(t)
		if err != nil {
			return err
		}
		var hooked []*ReadChain
		for _, ch := range chains {
			if ch.Hook != nil && !ch.leaving(t) {
				hooked = append(hooked, ch)
			}
		}
		slices.SortFunc(hooked, func(a, b *ReadChain) int {
			return cmp.Or(cmp.Compare(a.translates(), b.translates()), cmp.Compare(a.Name, b.Name))
		})
		for _, ch := range hooked {
			unhook.DeleteChain(t, ch.Name) // with its rules
		}
		remove.AddTable(t) // so that an absent one is not an error
		remove.DeleteTable(t)
	}
	if unhook.Len() > 0 {
		// Somebody else may have been faster.
		if err := c.Commit(&unhook); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("take chains off their hooks: %w", err)
		}
		Settle()
	}
	return c.Commit(&remove)
}

// leaving says whether the chain sees packets last.
func (ch *ReadChain) leaving(t Table) bool {
	const postrouting = 4 // NF_INET_POST_ROUTING
	return ch.Hook.Num == postrouting
}

func (ch *ReadChain) translates() int {
	if ch.Hook.Type == "nat" {
		return 1
	}
	return 0
}

// Settle waits until every packet that was on its way through hooks of this
// kernel has passed them. Where the kernel refuses to wait (it does with
// nohz_full=), it returns at once.
func Settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL waits for an RCU grace period; hooks are such readers
	_, _, _ = unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0)
}

// Replace puts into tx that a table is empty, whether it was there or not, for
// what else tx puts there. refusing are the sets whose elements the table's rules
// refuse: they are emptied first, or else what is said at RemoveTables would
// happen to packets that pass the old rules once more behind the new ones.
func (c *Conn) Replace(tx *Batch, t Table, refusing ...string) error {
	have, err := c.Sets(t)
	if err != nil {
		return err
	}
	for _, name := range refusing {
		if _, ok := have[name]; ok {
			tx.FlushSet(t, name)
		}
	}
	tx.AddTable(t) // so that an absent one is not an error
	tx.DeleteTable(t)
	tx.AddTable(t)
	return nil
}
