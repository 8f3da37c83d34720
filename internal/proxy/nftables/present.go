// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"slices"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// Present says whether the kernel has a table of ours.
func Present() (bool, error) {
	conn, err := nft.Dial()
	if err != nil {
		return false, nil //nolint:nilerr // no nf_tables, nothing in it
	}
	defer conn.Close()
	for _, f := range nft.Families {
		names, err := conn.Tables(f)
		if err != nil || slices.Contains(names, TableName) {
			return err == nil, err
		}
	}
	return false, nil
}
