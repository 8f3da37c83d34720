// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Cleanup removes the tables of resets and handover; absent is not an error.
func Cleanup() error {
	conn, err := nft.Dial()
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // without nf_tables there is none of it
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	var tx nft.Batch
	for _, fam := range model.Families {
		for _, name := range []string{resetTable, handoverTable, formerTable} {
			tx.AddTable(familyTable(fam, name)) // so that an absent one is not an error
			tx.DeleteTable(familyTable(fam, name))
		}
	}
	if err := conn.Commit(&tx); err != nil {
		return fmt.Errorf("delete tables of resets and handover: %w", err)
	}
	return nil
}
