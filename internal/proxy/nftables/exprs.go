// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// r0 is the first of the sixteen 4-byte registers (NFT_REG32_00).
const r0 = unix.NFT_REG32_00

func (p *program) addrWords() uint32 {
	if p.fam == model.IPv6 {
		return 4
	}
	return 1
}

func (p *program) frontendWords() uint32 { return p.addrWords() + 2 }

// exprList builds the expressions of one rule.
type exprList struct {
	p    *program
	list []expr.Any
}

func (p *program) exprs() *exprList { return &exprList{p: p} }

func (x *exprList) add(e expr.Any) { x.list = append(x.list, e) }

func (x *exprList) payload(reg uint32, base expr.PayloadBase, offset, length uint32) {
	x.add(&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length})
}

func (x *exprList) saddr(reg uint32) {
	if x.p.fam == model.IPv6 {
		x.payload(reg, expr.PayloadBaseNetworkHeader, 8, 16)
		return
	}
	x.payload(reg, expr.PayloadBaseNetworkHeader, 12, 4)
}

func (x *exprList) daddr(reg uint32) {
	if x.p.fam == model.IPv6 {
		x.payload(reg, expr.PayloadBaseNetworkHeader, 24, 16)
		return
	}
	x.payload(reg, expr.PayloadBaseNetworkHeader, 16, 4)
}

// saddrMasked and daddrMasked match an IPv4 range.
func (x *exprList) saddrMasked(reg uint32, p netip.Prefix) { x.saddr(reg); x.masked(reg, p) }
func (x *exprList) daddrMasked(reg uint32, p netip.Prefix) { x.daddr(reg); x.masked(reg, p) }

func (x *exprList) masked(reg uint32, p netip.Prefix) {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)})
	x.cmp(reg, expr.CmpOpEq, p.Addr().AsSlice())
}

func (x *exprList) l4proto(reg uint32) { x.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}) }

// frontend loads what the packet dials: ip daddr . meta l4proto . th dport.
func (x *exprList) frontend(reg uint32) *exprList {
	x.daddr(reg)
	x.l4proto(reg + x.p.addrWords())
	x.payload(reg+x.p.addrWords()+1, expr.PayloadBaseTransportHeader, 2, 2)
	return x
}

// nodePort loads the key of NodePorts: meta l4proto . th dport.
func (x *exprList) nodePort(reg uint32) {
	x.l4proto(reg)
	x.payload(reg+1, expr.PayloadBaseTransportHeader, 2, 2)
}

func (x *exprList) lookup(reg uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, SetName: set.String()})
}

func (x *exprList) lookupNot(reg uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, SetName: set.String(), Invert: true})
}

func (x *exprList) mapTo(reg, dest uint32, set setID) {
	x.add(&expr.Lookup{SourceRegister: reg, DestRegister: dest, IsDestRegSet: true, SetName: set.String()})
}

// throughMark makes nft know the value in reg as "meta mark". It uses two
// registers from free on and returns the one that then holds the value. The
// packet's mark is unchanged afterwards.
func (x *exprList) throughMark(reg, free uint32) uint32 {
	return x.throughMarkTo(reg, free, free+1)
}

// throughMarkTo is throughMark with saved as scratch and to as the result.
func (x *exprList) throughMarkTo(reg, saved, to uint32) uint32 {
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: saved})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: to})
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: saved, SourceRegister: true})
	return to
}

func (x *exprList) cmp(reg uint32, op expr.CmpOp, data []byte) {
	x.add(&expr.Cmp{Op: op, Register: reg, Data: data})
}

// and keeps some bits of a host-endian word.
func (x *exprList) and(reg, bits uint32) {
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4,
		Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)})
}

// fibLocal matches packets to (or not to) an address of this node.
func (x *exprList) fibLocal(reg uint32, local bool) {
	op := expr.CmpOpEq
	if !local {
		op = expr.CmpOpNeq
	}
	x.add(&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true})
	x.cmp(reg, op, binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL))
}

func (x *exprList) iifname(reg uint32, op expr.CmpOp, pattern string) {
	x.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg})
	x.cmp(reg, op, ifname(pattern))
}

func (x *exprList) oifname(reg uint32, op expr.CmpOp, pattern string) {
	x.add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg})
	x.cmp(reg, op, ifname(pattern))
}

// ifname is what to compare: the prefix alone, or the whole padded name.
func ifname(pattern string) []byte {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return []byte(prefix)
	}
	return append([]byte(pattern), make([]byte, unix.IFNAMSIZ-len(pattern))...)
}

func verdict(k expr.VerdictKind) *expr.Verdict { return &expr.Verdict{Kind: k} }

func goTo(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }
