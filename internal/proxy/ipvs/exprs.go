// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// r0 is the first of the sixteen 4-byte registers (NFT_REG32_00).
const r0 = unix.NFT_REG32_00

// exprList builds the expressions of one rule.
type exprList struct {
	p    *program
	list []expr.Any
}

func (p *program) exprs() *exprList { return &exprList{p: p} }

// words is the number of registers that an address takes.
func (p *program) words() uint32 {
	if p.fam == model.IPv6 {
		return 4
	}
	return 1
}

func (x *exprList) add(e expr.Any) { x.list = append(x.list, e) }

func (x *exprList) network(reg, v4offset, v6offset uint32) {
	load := &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: v4offset, Len: 4}
	if x.p.fam == model.IPv6 {
		load.Offset, load.Len = v6offset, 16
	}
	x.add(load)
}

func (x *exprList) saddr(reg uint32)   { x.network(reg, 12, 8) }
func (x *exprList) daddr(reg uint32)   { x.network(reg, 16, 24) }
func (x *exprList) l4proto(reg uint32) { x.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}) }

func (x *exprList) dport(reg uint32) {
	x.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
}

// frontend loads what the packet dials: ip daddr . meta l4proto . th dport.
func (x *exprList) frontend(reg uint32) {
	x.daddr(reg)
	x.l4proto(reg + x.p.words())
	x.dport(reg + x.p.words() + 1)
}

func (x *exprList) lookup(reg uint32, set setID, invert bool) {
	x.add(&expr.Lookup{SourceRegister: reg, SetName: set.String(), Invert: invert})
}

func (x *exprList) mark(reg uint32) { x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg}) }

func (x *exprList) setMark(reg uint32) {
	x.add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
}

// markWith sets the mark to a constant.
func (x *exprList) markWith(a action) {
	x.add(&expr.Immediate{Register: r0, Data: word(a)})
	x.setMark(r0)
}

// toLoopback matches packets to 127.0.0.0/8.
func (x *exprList) toLoopback() {
	x.add(&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 1})
	x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{127}})
}

// ours compares the part of the mark that says whose it is.
func (x *exprList) ours(op expr.CmpOp) {
	x.mark(r0)
	x.and(r0, markMask)
	x.cmp(r0, op, markBase)
}

func (x *exprList) and(reg uint32, bits action) {
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: word(bits), Xor: make([]byte, 4)})
}

func (x *exprList) cmp(reg uint32, op expr.CmpOp, a action) {
	x.add(&expr.Cmp{Op: op, Register: reg, Data: word(a)})
}

func word(a action) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(a)) }

const tcpSYN = 0x02

// withoutFlags matches TCP segments that have none of the flags.
func (x *exprList) withoutFlags(reg uint32, flags byte) {
	x.add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1})
	x.add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{flags}, Xor: []byte{0}})
	x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{0}})
}

// isNew matches the first packet of a connection.
func (x *exprList) isNew() {
	x.add(&expr.Ct{Register: r0, Key: expr.CtKeySTATE})
	x.and(r0, action(expr.CtStateBitNEW))
	x.cmp(r0, expr.CmpOpNeq, 0)
}

// reply matches packets that go back to who began the connection.
func (x *exprList) reply() {
	x.add(&expr.Ct{Register: r0, Key: expr.CtKeyDIRECTION})
	x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{1}}) // IP_CT_DIR_REPLY
}

// fromDialled makes what was dialled the packet's source.
func (x *exprList) fromDialled(protocol model.Protocol) {
	const dstIP, dstIP6 = 20, 22 // NFT_CT_DST_IP, NFT_CT_DST_IP6
	dialled := &expr.Ct{Register: r0, Key: dstIP}
	write := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: 10,
	}
	if x.p.fam == model.IPv6 {
		dialled.Key = dstIP6
		write.Offset, write.Len, write.CsumType, write.CsumOffset = 8, 16, expr.CsumTypeNone, 0
	}
	x.add(&nft.CtOriginal{Ct: dialled})
	x.add(&nft.Rewrite{Payload: write})
	checksums := map[model.Protocol]uint32{model.TCP: 16, model.UDP: 6}
	at, ok := checksums[protocol]
	if !ok {
		return // Linux 5.9 cannot compute that of SCTP
	}
	x.add(&nft.CtOriginal{Ct: &expr.Ct{Register: r0, Key: expr.CtKeyPROTODST}})
	x.add(&expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: r0, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2,
		CsumType: expr.CsumTypeInet, CsumOffset: at,
	})
}

// fibLocal matches packets whose source (else destination) is (or is not) an
// address of this node.
func (x *exprList) fibLocal(reg uint32, source, local bool) {
	op := expr.CmpOpEq
	if !local {
		op = expr.CmpOpNeq
	}
	x.add(&expr.Fib{Register: reg, FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true})
	x.cmp(reg, op, unix.RTN_LOCAL)
}

func (x *exprList) iifname(pattern string) {
	x.add(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: r0})
	x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: ifname(pattern)})
}

func (x *exprList) oifname(name string) {
	x.add(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: r0})
	x.add(&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: ifname(name)})
}

// ifname is what to compare: the prefix alone, or the whole padded name.
func ifname(pattern string) []byte {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return []byte(prefix)
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, pattern)
	return padded
}

func verdict(k expr.VerdictKind) *expr.Verdict { return &expr.Verdict{Kind: k} }

func goTo(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain} }
