// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	gexpr "github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	handoverTable = "causeway-handover"
	// formerTable is what versions up to 0.1 call it.
	formerTable    = "causeway-strays"
	handoverFormer = "former" // address -> node that announced it before
	handoverPass   = "pass"   // chain
)

// Handover passes segments of TCP connections that this node does not know, and ICMP
// errors about what another node has sent, on to the node that knows them. It is not
// safe for concurrent use.
type Handover struct {
	conn   *nft.Conn
	former map[netip.Addr]netip.Addr
}

// OpenHandover begins with what a process before this one left in the kernel, in
// the table of a former version too, which it replaces.
func OpenHandover() (*Handover, error) {
	conn, err := nft.Dial()
	if err != nil {
		return nil, fmt.Errorf("open netlink for handover: %w", err)
	}
	s := &Handover{conn: conn, former: map[netip.Addr]netip.Addr{}}
	for _, fam := range model.Families {
		for _, name := range []string{handoverTable, formerTable} { // after a downgrade both are there, and the former one is newer
			err := conn.Elements(familyTable(fam, name), handoverFormer, func(e nft.Element) {
				addr, ok := netip.AddrFromSlice([]byte(e.Key))
				node, ok2 := netip.AddrFromSlice([]byte(e.Value))
				if ok && ok2 {
					s.former[addr] = node
				}
			})
			if err != nil {
				return nil, errors.Join(fmt.Errorf("read handover: %w", err), conn.Close())
			}
		}
	}
	if err := s.write(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return s, nil
}

// Former is where the segments of addr are passed on to; the zero Addr for
// nowhere.
func (s *Handover) Former(addr netip.Addr) netip.Addr { return s.former[addr] }

// Addresses are those of which segments are passed on.
func (s *Handover) Addresses() []netip.Addr {
	out := make([]netip.Addr, 0, len(s.former))
	for a := range s.former {
		out = append(out, a)
	}
	return out
}

// Pass has segments for addr that this node does not know passed on to node, an
// address of the same family; the zero Addr ends that.
func (s *Handover) Pass(addr, node netip.Addr) error {
	old := s.former[addr]
	if old == node {
		return nil
	}
	var tx nft.Batch
	table := familyTable(model.FamilyOf(addr), handoverTable)
	if old.IsValid() {
		tx.DeleteElement(table, handoverFormer, nft.Element{Key: string(addr.AsSlice())})
		delete(s.former, addr)
	}
	if node.IsValid() {
		tx.AddElement(table, handoverFormer, handoverElement(addr, node))
		s.former[addr] = node
	}
	if err := s.conn.Commit(&tx); err == nil {
		return nil
	}
	return s.write() // somebody has changed the table
}

// write writes everything anew.
func (s *Handover) write() error {
	var tx nft.Batch
	for _, fam := range model.Families {
		table := familyTable(fam, handoverTable)
		declareHandover(&tx, fam, table)
		for addr, node := range s.former {
			if model.FamilyOf(addr) == fam {
				tx.AddElement(table, handoverFormer, handoverElement(addr, node))
			}
		}
	}
	if err := s.conn.Commit(&tx); err != nil {
		return fmt.Errorf("write handover: %w", err)
	}
	return nil
}

// Close leaves the kernel as it is.
func (s *Handover) Close() error { return s.conn.Close() }

func handoverElement(addr, node netip.Addr) nft.Element {
	return nft.Element{Key: string(addr.AsSlice()), Value: string(node.AsSlice())}
}

// arrivingChain is not "prerouting", which former versions add at another priority: one
// that takes this node over finds it free.
const arrivingChain = "arriving"

// declareHandover makes the table anew, so that it does not matter which version of
// the agent has left it. The chain stands behind connection tracking and resets, and
// before everything that translates, or refuses what it does not know.
func declareHandover(tx *nft.Batch, fam model.Family, table nft.Table) {
	const behindResets = prioResets + 1
	addr := table.Family.AddrType()
	for _, old := range []nft.Table{table, familyTable(fam, formerTable)} {
		tx.AddTable(old) // so that an absent one is not an error
		tx.DeleteTable(old)
	}
	tx.AddTable(table)
	tx.AddSet(nft.Set{Table: table, Name: handoverFormer, Key: []nft.Type{addr}, Data: []nft.Type{addr}})
	tx.AddChain(nft.Chain{Table: table, Name: arrivingChain, Hook: &nft.Hook{Type: "filter", Num: expr.HookPrerouting, Priority: behindResets}})
	tx.AddChain(nft.Chain{Table: table, Name: handoverPass})
	tx.AppendRule(table, handoverPass, limitHops(fam).Rule("so that none goes in circles"))
	tx.AppendRule(table, handoverPass, passOn(fam).Rule("the node that announced it before may know it"))
	for _, m := range unknownSegments(fam) {
		tx.AppendRule(table, arrivingChain, m.Goto(handoverPass).Rule(""))
	}
	for _, m := range unknownErrors(fam) {
		tx.AppendRule(table, arrivingChain, m.Goto(handoverPass).Rule("about what another node has sent"))
	}
}

// unknownSegments matches segments of connections that this node does not know. To
// connection tracking those that end one are invalid, all others are new.
//
//	meta l4proto tcp tcp flags & syn == 0 ct state new
//	meta l4proto tcp tcp flags & (fin | rst) != 0 ct state invalid
func unknownSegments(fam model.Family) []*expr.List {
	return []*expr.List{
		segments(fam, gexpr.CmpOpEq, expr.SYN, gexpr.CtStateBitNEW),
		segments(fam, gexpr.CmpOpNeq, expr.FIN|expr.RST, gexpr.CtStateBitINVALID),
	}
}

// unknownErrors matches ICMP errors about packets from an address that is passed on, of
// connections that this node does not know: to connection tracking they are invalid,
// and belong to nothing. Which connection it is stands in the packet that
// they quote; the node that knows it translates both.
//
//	icmp type 3, 11, 12 ct state invalid @th,160,32 @former
//	icmpv6 type 1-4 ct state invalid @th,128,128 @former
func unknownErrors(fam model.Family) []*expr.List {
	const quoted = 8 // behind the ICMP header (RFC 792, RFC 4443 section 3)
	header := func(proto byte) *expr.List { return exprs(fam).Protocol(proto).Transport(r0, 0, 1) }
	match := func(m *expr.List, source uint32) *expr.List {
		// What the map yields is not used, but older kernels look nothing up in one for
		// less.
		return m.State(gexpr.CtStateBitINVALID).Transport(r0, quoted+source, 4*words(fam)).Map(r0, r0, expr.Name(handoverFormer))
	}
	if fam == model.IPv6 {
		const source, unreachable, parameterProblem = 8, 1, 4 // between them too big and time exceeded
		m := header(unix.IPPROTO_ICMPV6).Compare(r0, gexpr.CmpOpGte, unreachable).Compare(r0, gexpr.CmpOpLte, parameterProblem)
		return []*expr.List{match(m, source)}
	}
	var ms []*expr.List
	for _, icmpType := range []byte{3, 11, 12} { // unreachable, with "fragmentation needed"; time exceeded; parameter problem
		const source = 12
		ms = append(ms, match(header(unix.IPPROTO_ICMP).Equal(r0, icmpType), source))
	}
	return ms
}

// handoverHops bounds how often a segment is passed on, to nodes and to a Pod.
const handoverHops = 8

// limitHops is
//
//	ip daddr @former ip ttl > handoverHops ip ttl set handoverHops
func limitHops(fam model.Family) *expr.List {
	const word = 2
	at, mask, set := uint32(8), []byte{0, 0xff}, []byte{handoverHops, 0} // TTL, protocol
	write := &gexpr.Payload{OperationType: gexpr.PayloadWrite, SourceRegister: r0, Base: gexpr.PayloadBaseNetworkHeader, Offset: at, Len: word, CsumType: gexpr.CsumTypeInet, CsumOffset: 10}
	if fam == model.IPv6 {
		at, mask, set = 6, []byte{0xff, 0}, []byte{0, handoverHops} // next header, hop limit
		write = &gexpr.Payload{OperationType: gexpr.PayloadWrite, SourceRegister: r0, Base: gexpr.PayloadBaseNetworkHeader, Offset: at, Len: word}
	}
	return hopsAbove(formerNode(fam), handoverHops).Network(r0, at, at, word).
		Add(&gexpr.Bitwise{SourceRegister: r0, DestRegister: r0, Len: word, Mask: mask, Xor: set}, write)
}

// passOn is
//
//	ip ttl > 1 dup to ip daddr map @former drop
//
// The copy that dup makes is not tracked, and the original is dropped before it
// would be: the connection stays unknown here. The copy's TTL is one less.
func passOn(fam model.Family) *expr.List {
	return hopsAbove(exprs(fam), 1).Then(formerNode(fam)).Add(&gexpr.Dup{RegAddr: r0}).Drop()
}

// hopsAbove matches packets by their TTL or hop limit.
func hopsAbove(x *expr.List, n byte) *expr.List {
	return x.Network(r0, 8, 7, 1).Compare(r0, gexpr.CmpOpGt, n)
}

// formerNode loads where a packet is passed on to.
func formerNode(fam model.Family) *expr.List {
	return exprs(fam).Daddr(r0).Map(r0, r0, expr.Name(handoverFormer))
}
