// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	gexpr "github.com/google/nftables/expr"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// familyTable is a table of resets or handover.
func familyTable(fam model.Family, name string) nft.Table {
	return nft.Table{Family: nft.FamilyOf(fam.Unspecified()), Name: name}
}

// r0 is the first of the sixteen 4-byte registers.
const r0 = expr.R0

func exprs(fam model.Family) *expr.List { return expr.For(familyTable(fam, "").Family) }

func words(fam model.Family) uint32 { return expr.Words(familyTable(fam, "").Family) }

// segments matches TCP segments by some of their flags, none of them for CmpOpEq,
// any for CmpOpNeq, that connection tracking has in one of some states.
func segments(fam model.Family, op gexpr.CmpOp, flags byte, states uint32) *expr.List {
	return exprs(fam).Protocol(uint8(model.TCP)).TCPFlags(flags, op, 0).State(states)
}
