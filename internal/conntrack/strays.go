// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	strayTable  = "causeway-strays"
	strayFormer = "former" // address -> node that announced it before
	strayPass   = "pass"   // chain
)

// Strays passes segments of TCP connections that this node does not know, and ICMP
// errors about what another node has sent, on to the node that knows them. It is not
// safe for concurrent use.
type Strays struct {
	conn   *nft.Conn
	former map[netip.Addr]netip.Addr
}

// OpenStrays begins with what a process before this one left in the kernel.
func OpenStrays() (*Strays, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, fmt.Errorf("open netlink for strays: %w", err)
	}
	s := &Strays{conn: conn, former: map[netip.Addr]netip.Addr{}}
	for _, fam := range model.Families {
		err := conn.Elements(familyTable(fam, strayTable), strayFormer, func(e nft.Element) {
			addr, ok := netip.AddrFromSlice([]byte(e.Key))
			node, ok2 := netip.AddrFromSlice([]byte(e.Value))
			if ok && ok2 {
				s.former[addr] = node
			}
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read strays: %w", err), conn.Close())
		}
	}
	if err := s.write(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// Former is where the segments of addr are passed on to; the zero Addr for
// nowhere.
func (s *Strays) Former(addr netip.Addr) netip.Addr { return s.former[addr] }

// Addresses are those of which segments are passed on.
func (s *Strays) Addresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(s.former))
	for a := range s.former {
		out = append(out, a)
	}
	return out
}

// Pass has segments for addr that this node does not know passed on to node, an
// address of the same family; the zero Addr ends that.
func (s *Strays) Pass(addr, node netip.Addr) error {
	old := s.former[addr]
	if old == node {
		return nil
	}
	var tx nft.Batch
	table := familyTable(model.FamilyOf(addr), strayTable)
	if old.IsValid() {
		tx.DeleteElement(table, strayFormer, nft.Element{Key: string(addr.AsSlice())})
		delete(s.former, addr)
	}
	if node.IsValid() {
		tx.AddElement(table, strayFormer, strayElement(addr, node))
		s.former[addr] = node
	}
	if err := s.conn.Commit(&tx); err == nil {
		return nil
	}
	return s.write() // somebody has changed the table
}

// write writes everything anew.
func (s *Strays) write() error {
	var tx nft.Batch
	for _, fam := range model.Families {
		table := familyTable(fam, strayTable)
		declareStrays(&tx, fam, table)
		for addr, node := range s.former {
			if model.FamilyOf(addr) == fam {
				tx.AddElement(table, strayFormer, strayElement(addr, node))
			}
		}
	}
	if err := s.conn.Commit(&tx); err != nil {
		return fmt.Errorf("write strays: %w", err)
	}
	return nil
}

// Close leaves the kernel as it is.
func (s *Strays) Close() error { return s.conn.Close() }

func strayElement(addr, node netip.Addr) nft.Element {
	return nft.Element{Key: string(addr.AsSlice()), Value: string(node.AsSlice())}
}

// strayChain is not "prerouting", which former versions add at another priority: one
// that takes this node over finds it free.
const strayChain = "arriving"

// declareStrays makes the table anew, so that it does not matter which version of
// the agent has left it. The chain stands behind connection tracking and resets, and
// before everything that translates, or refuses what it does not know.
func declareStrays(tx *nft.Batch, fam model.Family, table nft.Table) {
	const hookPrerouting, behindResets = 0, prioResets + 1
	addr := typeOf(fam)
	tx.AddTable(table) // so that an absent one is not an error
	tx.DeleteTable(table)
	tx.AddTable(table)
	tx.AddSet(nft.Set{Table: table, Name: strayFormer, Key: []nft.Type{addr}, Data: []nft.Type{addr}})
	tx.AddChain(nft.Chain{Table: table, Name: strayChain, Hook: &nft.Hook{Type: "filter", Num: hookPrerouting, Priority: behindResets}})
	tx.AddChain(nft.Chain{Table: table, Name: strayPass})
	tx.AppendRule(table, strayPass, nft.Rule{Comment: "so that none goes in circles", Exprs: strayShorten(fam)})
	tx.AppendRule(table, strayPass, nft.Rule{Comment: "the node that announced it before may know it", Exprs: strayDup(fam)})
	pass := &expr.Verdict{Kind: expr.VerdictGoto, Chain: strayPass}
	for _, m := range strays() {
		tx.AppendRule(table, strayChain, nft.Rule{Exprs: append(m, pass)})
	}
	for _, m := range strayErrors(fam) {
		tx.AppendRule(table, strayChain, nft.Rule{Comment: "about what another node has sent", Exprs: append(m, pass)})
	}
}

// strays matches segments of connections that this node does not know. To
// connection tracking those that end one are invalid, all others are new.
//
//	meta l4proto tcp tcp flags & syn == 0 ct state new
//	meta l4proto tcp tcp flags & (fin | rst) != 0 ct state invalid
func strays() [][]expr.Any {
	return [][]expr.Any{
		append(segments(expr.CmpOpEq, flagSYN), states(expr.CtStateBitNEW)...),
		append(segments(expr.CmpOpNeq, flagFIN|flagRST), states(expr.CtStateBitINVALID)...),
	}
}

// strayErrors matches ICMP errors about packets from an address that is passed on, of
// connections that this node does not know: to connection tracking they are invalid,
// and belong to nothing. Which connection it is stands in the packet that
// they quote; the node that knows it translates both.
//
//	icmp type 3, 11, 12 ct state invalid @th,160,32 @former
//	icmpv6 type 1-4 ct state invalid @th,128,128 @former
func strayErrors(fam model.Family) [][]expr.Any {
	const r0 = unix.NFT_REG32_00
	const quoted = 8 // behind the ICMP header (RFC 792, RFC 4443 section 3)
	source, _, length := addresses(fam)
	match := func(proto byte, types ...expr.Any) []expr.Any {
		m := append([]expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: r0},
			&expr.Cmp{Op: expr.CmpOpEq, Register: r0, Data: []byte{proto}},
			&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseTransportHeader, Len: 1},
		}, types...)
		return append(append(m, states(expr.CtStateBitINVALID)...),
			&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseTransportHeader, Offset: quoted + source, Len: length},
			// What it yields is not used, but older kernels look nothing up in a map for
			// less.
			&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: strayFormer},
		)
	}
	is := func(op expr.CmpOp, icmpType byte) expr.Any {
		return &expr.Cmp{Op: op, Register: r0, Data: []byte{icmpType}}
	}
	if fam == model.IPv6 {
		const unreachable, parameterProblem = 1, 4 // between them too big and time exceeded
		return [][]expr.Any{match(unix.IPPROTO_ICMPV6, is(expr.CmpOpGte, unreachable), is(expr.CmpOpLte, parameterProblem))}
	}
	var ms [][]expr.Any
	for _, icmpType := range []byte{3, 11, 12} { // unreachable, with "fragmentation needed"; time exceeded; parameter problem
		ms = append(ms, match(unix.IPPROTO_ICMP, is(expr.CmpOpEq, icmpType)))
	}
	return ms
}

// strayHops bounds how often a stray is forwarded, to nodes and to a Pod.
const strayHops = 8

// strayShorten is
//
//	ip daddr @former ip ttl > strayHops ip ttl set strayHops
func strayShorten(fam model.Family) []expr.Any {
	const r0, word = unix.NFT_REG32_00, 2
	at, mask, set := uint32(8), []byte{0, 0xff}, []byte{strayHops, 0} // TTL, protocol
	write := &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: word, CsumType: expr.CsumTypeInet, CsumOffset: 10}
	if fam == model.IPv6 {
		at, mask, set = 6, []byte{0xff, 0}, []byte{0, strayHops} // next header, hop limit
		write = &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: word}
	}
	return append(append(strayTo(fam), hopsAbove(fam, strayHops)...),
		&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: word},
		&expr.Bitwise{SourceRegister: r0, DestRegister: r0, Len: word, Mask: mask, Xor: set},
		write,
	)
}

// strayDup is
//
//	ip ttl > 1 dup to ip daddr map @former drop
//
// The copy that dup makes is not tracked, and the original is dropped before it
// would be: the connection stays unknown here. The copy's TTL is one less.
func strayDup(fam model.Family) []expr.Any {
	return append(append(hopsAbove(fam, 1), strayTo(fam)...), &expr.Dup{RegAddr: unix.NFT_REG32_00}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// hopsAbove matches packets by their TTL or hop limit.
func hopsAbove(fam model.Family, n byte) []expr.Any {
	const r0 = unix.NFT_REG32_00
	at := uint32(8)
	if fam == model.IPv6 {
		at = 7
	}
	return []expr.Any{
		&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGt, Register: r0, Data: []byte{n}},
	}
}

// strayTo loads where a packet is passed on to.
func strayTo(fam model.Family) []expr.Any {
	const r0 = unix.NFT_REG32_00
	_, destination, length := addresses(fam)
	return []expr.Any{
		&expr.Payload{DestRegister: r0, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: length},
		&expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: strayFormer},
	}
}
