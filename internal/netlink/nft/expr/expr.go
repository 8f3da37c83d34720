// SPDX-License-Identifier: Apache-2.0

package expr

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
)

// R0 is the first of the sixteen 4-byte registers (NFT_REG32_00).
const R0 = unix.NFT_REG32_00

// Hook numbers (enum nf_inet_hooks) and priorities (enum nf_ip_hook_priorities).
const (
	HookPrerouting  = 0
	HookInput       = 1
	HookForward     = 2
	HookOutput      = 3
	HookPostrouting = 4

	PriorityRaw       = -300
	PriorityConntrack = -200
	PriorityMangle    = -150
	PriorityDstNAT    = -100
	PriorityFilter    = 0
	PrioritySrcNAT    = 100
)

// Bits of TCP's flags.
const (
	FIN = 1 << iota
	SYN
	RST
	_
	ACK
)

// Name is the name of a set.
type Name string

// String returns the name.
func (n Name) String() string { return string(n) }

// List is the expressions of one rule under construction.
type List struct {
	family nft.Family
	list   []expr.Any
}

// For returns an empty List for a table of one family.
func For(f nft.Family) *List { return &List{family: f} }

// Words returns the number of registers that an address takes.
func Words(f nft.Family) uint32 {
	if f == nft.FamilyIPv6 {
		return 4
	}
	return 1
}

// Word returns v in the host's byte order, as marks and states are.
func Word(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// Rule returns the finished rule. comment may be empty.
func (x *List) Rule(comment string) nft.Rule { return nft.Rule{Comment: comment, Exprs: x.list} }

// Add appends expressions.
func (x *List) Add(es ...expr.Any) *List {
	x.list = append(x.list, es...)
	return x
}

// Then appends the expressions of o.
func (x *List) Then(o *List) *List { return x.Add(o.list...) }

// Network loads length bytes of the network header, at an offset that depends on
// the family.
func (x *List) Network(reg, v4, v6, length uint32) *List {
	at := v4
	if x.family == nft.FamilyIPv6 {
		at = v6
	}
	return x.Add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: length})
}

// Transport loads bytes of the transport header.
func (x *List) Transport(reg, offset, length uint32) *List {
	return x.Add(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length})
}

// Saddr loads the source address, Daddr the destination.
func (x *List) Saddr(reg uint32) *List { return x.Network(reg, 12, 8, 4*Words(x.family)) }

// Daddr loads the destination address.
func (x *List) Daddr(reg uint32) *List { return x.Network(reg, 16, 24, 4*Words(x.family)) }

// Sport loads the source port.
func (x *List) Sport(reg uint32) *List { return x.Transport(reg, 0, 2) }

// Dport loads the destination port.
func (x *List) Dport(reg uint32) *List { return x.Transport(reg, 2, 2) }

func (x *List) meta(key expr.MetaKey, reg uint32) *List {
	return x.Add(&expr.Meta{Key: key, Register: reg})
}

// L4Proto loads the IP protocol number.
func (x *List) L4Proto(reg uint32) *List { return x.meta(expr.MetaKeyL4PROTO, reg) }

// NodePort loads meta l4proto . th dport.
func (x *List) NodePort(reg uint32) *List { return x.L4Proto(reg).Dport(reg + 1) }

// Frontend loads what the packet dials: ip daddr . meta l4proto . th dport.
func (x *List) Frontend(reg uint32) *List { return x.Daddr(reg).NodePort(reg + Words(x.family)) }

// Protocol matches packets of a protocol.
func (x *List) Protocol(number uint8) *List { return x.L4Proto(R0).Equal(R0, number) }

// Lookup matches a key that is in a set.
func (x *List) Lookup(reg uint32, set fmt.Stringer) *List {
	return x.Add(&expr.Lookup{SourceRegister: reg, SetName: set.String()})
}

// LookupNot matches a key that is not in a set.
func (x *List) LookupNot(reg uint32, set fmt.Stringer) *List {
	return x.Add(&expr.Lookup{SourceRegister: reg, SetName: set.String(), Invert: true})
}

// Map loads the value that a map has for a key; without one it does not match.
func (x *List) Map(reg, dest uint32, set fmt.Stringer) *List {
	return x.Add(&expr.Lookup{SourceRegister: reg, DestRegister: dest, IsDestRegSet: true, SetName: set.String()})
}

// Compare matches a register by its bytes.
func (x *List) Compare(reg uint32, op expr.CmpOp, data ...byte) *List {
	return x.Add(&expr.Cmp{Op: op, Register: reg, Data: data})
}

// Equal matches a register that has these bytes.
func (x *List) Equal(reg uint32, data ...byte) *List { return x.Compare(reg, expr.CmpOpEq, data...) }

// NotEqual matches a register that has others.
func (x *List) NotEqual(reg uint32, data ...byte) *List {
	return x.Compare(reg, expr.CmpOpNeq, data...)
}

// And keeps the bits of a mask.
func (x *List) And(reg uint32, mask ...byte) *List {
	n := len(mask)
	return x.Add(&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(n), Mask: mask, Xor: make([]byte, n)})
}

// In matches an IPv4 address that is in a range.
func (x *List) In(reg uint32, p netip.Prefix) *List {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return x.And(reg, mask...).Equal(reg, p.Addr().AsSlice()...)
}

// Mark loads the packet's mark.
func (x *List) Mark(reg uint32) *List { return x.meta(expr.MetaKeyMARK, reg) }

// SetMark sets the packet's mark to a register.
func (x *List) SetMark(reg uint32) *List {
	return x.Add(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
}

// Immediate loads a constant.
func (x *List) Immediate(reg uint32, data ...byte) *List {
	return x.Add(&expr.Immediate{Register: reg, Data: data})
}

// MarkWith sets the packet's mark to a constant.
func (x *List) MarkWith(v uint32) *List { return x.Immediate(R0, Word(v)...).SetMark(R0) }

// Marked matches a mark: all of it.
func (x *List) Marked(v uint32) *List { return x.Mark(R0).Equal(R0, Word(v)...) }

// IIFName matches the incoming interface: by its prefix if the pattern ends in '*'.
func (x *List) IIFName(op expr.CmpOp, pattern string) *List {
	return x.meta(expr.MetaKeyIIFNAME, R0).Compare(R0, op, ifname(pattern)...)
}

// OIFName matches the outgoing interface: by its prefix if the pattern ends in '*'.
func (x *List) OIFName(op expr.CmpOp, pattern string) *List {
	return x.meta(expr.MetaKeyOIFNAME, R0).Compare(R0, op, ifname(pattern)...)
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

// LocalSource matches packets from, or not from, an address of this node.
func (x *List) LocalSource(local bool) *List {
	return x.local(&expr.Fib{Register: R0, FlagSADDR: true, ResultADDRTYPE: true}, local)
}

// LocalDestination matches packets to, or not to, an address of this node.
func (x *List) LocalDestination(local bool) *List {
	return x.local(&expr.Fib{Register: R0, FlagDADDR: true, ResultADDRTYPE: true}, local)
}

func (x *List) local(fib *expr.Fib, local bool) *List {
	op := expr.CmpOpEq
	if !local {
		op = expr.CmpOpNeq
	}
	return x.Add(fib).Compare(R0, op, Word(unix.RTN_LOCAL)...)
}

func (x *List) ct(key expr.CtKey) *List { return x.Add(&expr.Ct{Register: R0, Key: key}) }

// any matches R0 if it has one of the bits.
func (x *List) any(bits uint32) *List { return x.And(R0, Word(bits)...).NotEqual(R0, Word(0)...) }

// State matches packets that connection tracking has in one of these states
// (expr.CtStateBit*).
func (x *List) State(bits uint32) *List { return x.ct(expr.CtKeySTATE).any(bits) }

// Status matches packets of connections that have one of these bits (IPS_*).
func (x *List) Status(bits uint32) *List { return x.ct(expr.CtKeySTATUS).any(bits) }

// NoStatus matches packets of connections that have none of these bits (IPS_*).
func (x *List) NoStatus(bits uint32) *List {
	return x.ct(expr.CtKeySTATUS).And(R0, Word(bits)...).Equal(R0, Word(0)...)
}

// Tracked loads the state and matches every packet: a rule that has it keeps
// connection tracking on.
func (x *List) Tracked() *List { return x.ct(expr.CtKeySTATE) }

// Reply matches packets to the host that began the connection.
func (x *List) Reply() *List {
	return x.ct(expr.CtKeyDIRECTION).Equal(R0, 1) // IP_CT_DIR_REPLY
}

// OriginalDaddr loads the address that the connection's first packet was sent to.
func (x *List) OriginalDaddr(reg uint32) *List {
	const dstIP, dstIP6 = 20, 22 // NFT_CT_DST_IP, NFT_CT_DST_IP6: nft lists NFT_CT_DST wrongly
	key := expr.CtKey(dstIP)
	if x.family == nft.FamilyIPv6 {
		key = dstIP6
	}
	return x.Add(&nft.CtOriginal{Ct: &expr.Ct{Register: reg, Key: key}})
}

// OriginalDport loads the port that the connection's first packet was sent to.
func (x *List) OriginalDport(reg uint32) *List {
	return x.Add(&nft.CtOriginal{Ct: &expr.Ct{Register: reg, Key: expr.CtKeyPROTODST}})
}

// TCPFlags compares those of the flags that mask has, of packets known to be TCP.
func (x *List) TCPFlags(mask byte, op expr.CmpOp, flags byte) *List {
	return x.Transport(R0, 13, 1).And(R0, mask).Compare(R0, op, flags)
}

// SetSaddr writes the source address, and has the checksums follow.
func (x *List) SetSaddr(reg uint32) *List {
	write := &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: 10,
	}
	if x.family == nft.FamilyIPv6 {
		write.Offset, write.Len, write.CsumType, write.CsumOffset = 8, 16, expr.CsumTypeNone, 0
	}
	return x.Add(&nft.Rewrite{Payload: write})
}

// SetSport writes the source port; checksum is where in the transport header the
// checksum is, which follows.
func (x *List) SetSport(reg, checksum uint32) *List {
	return x.Add(&expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2,
		CsumType: expr.CsumTypeInet, CsumOffset: checksum,
	})
}

// Random loads a random number below n.
func (x *List) Random(reg uint32, n int) *List {
	return x.Add(&expr.Numgen{Register: reg, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM})
}

// Update adds an element to a dynamic map, or begins its time anew.
func (x *List) Update(key, value uint32, set fmt.Stringer, timeout time.Duration) *List {
	return x.Add(&expr.Dynset{SrcRegKey: key, SrcRegData: value, SetName: set.String(), Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: timeout})
}

// Delete deletes an element of a dynamic map.
func (x *List) Delete(key, value uint32, set fmt.Stringer) *List {
	const opDelete = 2 // NFT_DYNSET_OP_DELETE
	return x.Add(&expr.Dynset{SrcRegKey: key, SrcRegData: value, SetName: set.String(), Operation: opDelete})
}

// DNAT translates to the address and port in the registers from reg on.
func (x *List) DNAT(reg uint32) *List {
	port := reg + Words(x.family)
	return x.Add(&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(x.family),
		RegAddrMin: reg, RegAddrMax: reg, RegProtoMin: port, RegProtoMax: port, Specified: true,
	})
}

// Masquerade translates the source to this node's, with a random port.
func (x *List) Masquerade() *List { return x.Add(&expr.Masq{FullyRandom: true}) }

// Transparent matches packets of a connection that a transparent socket has.
func (x *List) Transparent() *List {
	return x.Add(&expr.Socket{Key: expr.SocketKeyTransparent, Register: R0}).Equal(R0, 1)
}

// TProxy gives the packet to the socket that listens at an address of the family.
func (x *List) TProxy(at netip.AddrPort) *List {
	port := R0 + Words(x.family)
	return x.Immediate(R0, at.Addr().AsSlice()...).
		Immediate(port, binary.BigEndian.AppendUint16(nil, at.Port())...).
		Add(&expr.TProxy{Family: byte(x.family), TableFamily: byte(x.family), RegAddr: R0, RegPort: port})
}

// RejectTCP answers with a reset.
func (x *List) RejectTCP() *List { return x.Add(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}) }

// RejectPort answers that the port is unreachable.
func (x *List) RejectPort() *List {
	unreachable := &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3} // ICMP_PORT_UNREACH
	if x.family == nft.FamilyIPv6 {
		unreachable.Code = 4 // ICMPV6_PORT_UNREACH
	}
	return x.Add(unreachable)
}

func (x *List) verdict(k expr.VerdictKind, chain string) *List {
	return x.Add(&expr.Verdict{Kind: k, Chain: chain})
}

// Accept ends this table's chains of the hook; the packet goes on.
func (x *List) Accept() *List { return x.verdict(expr.VerdictAccept, "") }

// Drop drops the packet.
func (x *List) Drop() *List { return x.verdict(expr.VerdictDrop, "") }

// Return leaves the chain.
func (x *List) Return() *List { return x.verdict(expr.VerdictReturn, "") }

// Goto goes on in another chain, and does not come back.
func (x *List) Goto(chain string) *List { return x.verdict(expr.VerdictGoto, chain) }
