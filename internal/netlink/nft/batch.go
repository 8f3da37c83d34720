// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Family is an nf_tables address family, the NFPROTO_* number.
type Family uint8

// Families that a Table can have.
const (
	FamilyIPv4   Family = unix.NFPROTO_IPV4
	FamilyIPv6   Family = unix.NFPROTO_IPV6
	FamilyNetdev Family = unix.NFPROTO_NETDEV
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return FamilyIPv4
	}
	return FamilyIPv6
}

// Families are those of a Service's addresses.
var Families = [...]Family{FamilyIPv4, FamilyIPv6}

// String is the name that nft uses: "ip", "ip6", "netdev".
func (f Family) String() string {
	switch f {
	case FamilyIPv4:
		return "ip"
	case FamilyIPv6:
		return "ip6"
	case FamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family-%d", uint8(f))
}

// Table names a table.
type Table struct {
	Family Family
	Name   string
}

const (
	// maxListBytes bounds a list of elements: a nested attribute's length has
	// 16 bits.
	maxListBytes = 60_000
	// maxListElements bounds the elements of one message.
	maxListElements = 400

	nfgenmsgLen = 4
)

// Batch is one transaction under construction. The zero value is ready to
// use; Reset makes it so again and keeps the buffer. Not safe for concurrent
// use.
type Batch struct {
	enc attributes.Encoder
	// ops[i] describes the message with sequence number i+1, for errors.
	ops []string
	// last is the offset of the last message.
	last int

	open openList
	err  error
}

// openList is the element message that the next element may join.
type openList struct {
	on    bool
	op    uint16
	table Table
	set   string
	msg   int // offset of its nlmsghdr
	list  int // offset of the list attribute
	count int
}

// Reset empties the batch.
func (b *Batch) Reset() {
	b.enc.Reset()
	*b = Batch{enc: b.enc, ops: b.ops[:0]}
}

// Len is the number of messages, not counting the begin and end marks.
func (b *Batch) Len() int { return len(b.ops) }

// Bytes is the size of the transaction so far.
func (b *Batch) Bytes() int { return len(b.enc.Buf) }

// begin opens a message; the returned offset is what end needs.
func (b *Batch) begin(msgType uint16, flags uint16, f Family, op string) int {
	b.closeList()
	b.ops = append(b.ops, op)
	b.last = len(b.enc.Buf)
	b.enc.Buf = appendRequest(b.enc.Buf, msgType, flags, uint32(len(b.ops)), f)
	return b.last
}

// end closes the message that starts at off.
func (b *Batch) end(off int) { netlink.EndMessage(b.enc.Buf[off:]) }

func appendRequest(buf []byte, msgType, flags uint16, seq uint32, f Family) []byte {
	buf = netlink.AppendHeader(buf, unix.NFNL_SUBSYS_NFTABLES<<8|msgType, flags, seq)
	return append(buf, byte(f), unix.NFNETLINK_V0, 0, 0)
}

func (b *Batch) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

// problem is why the batch cannot be sent.
func (b *Batch) problem() error { return cmp.Or(b.err, b.enc.Err()) }

// AddTable creates t; of a table that exists it switches the hooks on.
func (b *Batch) AddTable(t Table) {
	off := b.begin(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, t.Family, "add table "+t.String())
	b.enc.String(unix.NFTA_TABLE_NAME, t.Name)
	b.enc.BE32(unix.NFTA_TABLE_FLAGS, 0)
	b.end(off)
}

// DeleteTable deletes t and all in it; the transaction fails with ENOENT if
// there is no such table.
func (b *Batch) DeleteTable(t Table) {
	off := b.begin(unix.NFT_MSG_DELTABLE, 0, t.Family, "delete table "+t.String())
	b.enc.String(unix.NFTA_TABLE_NAME, t.Name)
	b.end(off)
}

// String is "ip causeway".
func (t Table) String() string { return t.Family.String() + " " + t.Name }

// Hook makes a Chain a base chain.
type Hook struct {
	// Type is "filter" or "nat".
	Type string
	// Num is the NF_INET_* hook number.
	Num uint32
	// Priority orders the chains of a hook, lowest first.
	Priority int32
}

// Chain describes a chain; Hook is nil for a regular one.
type Chain struct {
	Table Table
	Name  string
	Hook  *Hook
	// Rules are what AppendRules appends.
	Rules []Rule
}

// Netfilter's verdicts as policies of base chains and values of verdict maps.
const (
	nfDrop   = 0
	nfAccept = 1
)

// AddChain creates c, without its rules; one that exists with the same hook stays. What no rule of
// a base chain decides on is accepted.
func (b *Batch) AddChain(c Chain) {
	off := b.begin(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, c.Table.Family, "add chain "+c.Table.String()+" "+c.Name)
	b.enc.String(unix.NFTA_CHAIN_TABLE, c.Table.Name)
	b.enc.String(unix.NFTA_CHAIN_NAME, c.Name)
	if h := c.Hook; h != nil {
		n := b.enc.Nest(unix.NFTA_CHAIN_HOOK)
		b.enc.BE32(unix.NFTA_HOOK_HOOKNUM, h.Num)
		b.enc.BE32(unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
		b.enc.End(n)
		b.enc.BE32(unix.NFTA_CHAIN_POLICY, nfAccept)
		b.enc.String(unix.NFTA_CHAIN_TYPE, h.Type)
	}
	b.end(off)
}

// DeleteChain deletes a chain, which must be empty and unreferenced by then.
func (b *Batch) DeleteChain(t Table, name string) {
	off := b.begin(unix.NFT_MSG_DELCHAIN, 0, t.Family, "delete chain "+t.String()+" "+name)
	b.enc.String(unix.NFTA_CHAIN_TABLE, t.Name)
	b.enc.String(unix.NFTA_CHAIN_NAME, name)
	b.end(off)
}

// FlushChain deletes all rules of a chain.
func (b *Batch) FlushChain(t Table, name string) {
	off := b.begin(unix.NFT_MSG_DELRULE, 0, t.Family, "flush chain "+t.String()+" "+name)
	b.enc.String(unix.NFTA_RULE_TABLE, t.Name)
	b.enc.String(unix.NFTA_RULE_CHAIN, name)
	b.end(off)
}

// Rule is a rule to append to a chain.
type Rule struct {
	// Comment is shown by nft, at most 127 bytes.
	Comment string
	Exprs   []expr.Any
}

// AppendRule appends r to a chain.
func (b *Batch) AppendRule(t Table, chain string, r Rule) {
	off := b.begin(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, t.Family, "add rule "+t.String()+" "+chain)
	b.enc.String(unix.NFTA_RULE_TABLE, t.Name)
	b.enc.String(unix.NFTA_RULE_CHAIN, chain)
	n := b.enc.Nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range r.Exprs {
		b.expression(t.Family, e)
	}
	b.enc.End(n)
	if r.Comment != "" {
		b.enc.Bytes(unix.NFTA_RULE_USERDATA, commentUserData(r.Comment))
	}
	b.end(off)
}

// AppendRules appends the rules of c to the chain.
func (b *Batch) AppendRules(c Chain) {
	for _, r := range c.Rules {
		b.AppendRule(c.Table, c.Name, r)
	}
}

// CtOriginal is an expr.Ct that loads from the tuple of the original
// direction; expr.Ct itself writes the direction for some keys only.
type CtOriginal struct{ *expr.Ct }

// Rewrite is an expr.Payload that writes an address and has the checksum follow
// that covers it besides the header's own: expr.Payload leaves its flags out for
// IPv6, whose header has none.
type Rewrite struct{ *expr.Payload }

func (b *Batch) expression(f Family, e expr.Any) {
	n := b.enc.Nest(unix.NFTA_LIST_ELEM)
	defer b.enc.End(n)
	if w, ok := e.(*Rewrite); ok {
		b.enc.String(unix.NFTA_EXPR_NAME, "payload")
		d := b.enc.Nest(unix.NFTA_EXPR_DATA)
		b.enc.BE32(unix.NFTA_PAYLOAD_SREG, w.SourceRegister)
		b.enc.BE32(unix.NFTA_PAYLOAD_BASE, uint32(w.Base))
		b.enc.BE32(unix.NFTA_PAYLOAD_OFFSET, w.Offset)
		b.enc.BE32(unix.NFTA_PAYLOAD_LEN, w.Len)
		b.enc.BE32(unix.NFTA_PAYLOAD_CSUM_TYPE, uint32(w.CsumType))
		b.enc.BE32(unix.NFTA_PAYLOAD_CSUM_OFFSET, w.CsumOffset)
		b.enc.BE32(unix.NFTA_PAYLOAD_CSUM_FLAGS, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR)
		b.enc.End(d)
		return
	}
	if ct, ok := e.(*CtOriginal); ok {
		b.enc.String(unix.NFTA_EXPR_NAME, "ct")
		d := b.enc.Nest(unix.NFTA_EXPR_DATA)
		b.enc.BE32(unix.NFTA_CT_DREG, ct.Register)
		b.enc.BE32(unix.NFTA_CT_KEY, uint32(ct.Key))
		b.enc.Bytes(unix.NFTA_CT_DIRECTION, []byte{0}) // IP_CT_DIR_ORIGINAL
		b.enc.End(d)
		return
	}
	data, err := expr.Marshal(byte(f), e)
	if err != nil {
		b.fail(fmt.Errorf("encode %T: %w", e, err))
		return
	}
	b.enc.Buf = append(b.enc.Buf, data...)
}

// commentUserData is libnftnl's encoding of a rule's comment: type 0, length,
// string with its NUL.
func commentUserData(s string) []byte {
	if len(s) > 127 {
		s = s[:127]
	}
	return append(append([]byte{0, byte(len(s) + 1)}, s...), 0)
}

// Append adds the messages of o behind those of b. o may be reused after.
func (b *Batch) Append(o *Batch) {
	b.closeList()
	o.closeList()
	b.fail(o.problem())
	if len(o.ops) == 0 {
		return
	}
	b.last = len(b.enc.Buf) + o.last
	b.enc.Buf = append(b.enc.Buf, o.enc.Buf...)
	b.ops = append(b.ops, o.ops...)
}
