// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// familyTable is a table of resets or strays.
func familyTable(fam model.Family, name string) nft.Table {
	if fam == model.IPv4 {
		return nft.Table{Family: nft.FamilyIPv4, Name: name}
	}
	return nft.Table{Family: nft.FamilyIPv6, Name: name}
}

// typeOf is the type of a family's addresses in sets.
func typeOf(fam model.Family) nft.Type {
	if fam == model.IPv4 {
		return nft.TypeIPv4
	}
	return nft.TypeIPv6
}

// addresses says where in a packet its addresses are, and how long one is.
func addresses(fam model.Family) (source, destination, length uint32) {
	if fam == model.IPv4 {
		return 12, 16, 4
	}
	return 8, 24, 16
}

// Bits of TCP's flags.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
)

// segments matches TCP segments by some of their flags: none of them for
// CmpOpEq, any for CmpOpNeq.
func segments(op expr.CmpOp, flags byte) []expr.Any {
	const r0 = unix.NFT_REG32_00
	const flagsOffset = 13
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{byte(model.TCP)}},
		&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseTransportHeader, Offset: flagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: r0, DestRegister: r0, Len: 1, Mask: []byte{flags}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: r0, Data: []byte{0}},
	}
}

// states matches packets whose state to connection tracking is one of those.
func states(bits uint32) []expr.Any {
	const r0 = unix.NFT_REG32_00
	return []expr.Any{
		&expr.Ct{Register: r0, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: r0, DestRegister: r0, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: r0, Data: make([]byte, 4)},
	}
}
