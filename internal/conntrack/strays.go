// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
)

const (
	strayTable  = "causeway-strays"
	strayFormer = "former" // address -> node that announced it before
	strayPass   = "pass"   // chain
)

// Strays passes segments of TCP connections that this node does not know on to
// the node that does. It is not safe for concurrent use.
type Strays struct {
	conn   *nfnl.Conn
	former map[netip.Addr]netip.Addr
}

// OpenStrays begins with what a process before this one left in the kernel.
func OpenStrays() (*Strays, error) {
	conn, err := nfnl.Dial()
	if err != nil {
		return nil, fmt.Errorf("open netlink for strays: %w", err)
	}
	s := &Strays{conn: conn, former: map[netip.Addr]netip.Addr{}}
	for _, fam := range model.Families {
		err := conn.Elements(familyTable(fam, strayTable), strayFormer, func(e nfnl.Element) {
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
	var tx nfnl.Batch
	table := familyTable(model.FamilyOf(addr), strayTable)
	if old.IsValid() {
		tx.DeleteElement(table, strayFormer, nfnl.Element{Key: string(addr.AsSlice())})
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
	var tx nfnl.Batch
	for _, fam := range model.Families {
		table := familyTable(fam, strayTable)
		declareStrays(&tx, fam, table)
		tx.FlushSet(table, strayFormer)
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

func strayElement(addr, node netip.Addr) nfnl.Element {
	return nfnl.Element{Key: string(addr.AsSlice()), Value: string(node.AsSlice())}
}

// declareStrays makes what is missing of the table and writes its rules anew. The
// chain stands behind connection tracking and resets, and before the translation
// of destinations.
func declareStrays(tx *nfnl.Batch, fam model.Family, table nfnl.Table) {
	const hookPrerouting, behindResets = 0, -149
	addr := typeOf(fam)
	tx.AddTable(table)
	tx.AddSet(nfnl.Set{Table: table, Name: strayFormer, Key: []nfnl.Type{addr}, Data: []nfnl.Type{addr}})
	tx.AddChain(nfnl.Chain{Table: table, Name: "prerouting", Hook: &nfnl.Hook{Type: "filter", Num: hookPrerouting, Priority: behindResets}})
	tx.AddChain(nfnl.Chain{Table: table, Name: strayPass})
	tx.FlushChain(table, "prerouting")
	tx.FlushChain(table, strayPass)
	tx.AppendRule(table, strayPass, nfnl.Rule{Comment: "so that none goes in circles", Exprs: strayShorten(fam)})
	tx.AppendRule(table, strayPass, nfnl.Rule{Comment: "the node that announced it before may know it", Exprs: strayDup(fam)})
	pass := &expr.Verdict{Kind: expr.VerdictGoto, Chain: strayPass}
	for _, m := range strays() {
		tx.AppendRule(table, "prerouting", nfnl.Rule{Exprs: append(m, pass)})
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
