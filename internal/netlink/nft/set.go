// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink/attributes"
)

// Type is one of nft's data types: what nft list prints an element as. Values
// are those of nft's datatype table, which user space shares through the
// kernel (NFTA_SET_KEY_TYPE is opaque to it).
type Type struct {
	magic uint32
	size  int // bytes in use, before padding to 4
}

// Data types that sets use.
var (
	TypeIPv4    = Type{7, 4}
	TypeIPv6    = Type{8, 16}
	TypeProto   = Type{12, 1}
	TypeService = Type{13, 2}
	TypeMark    = Type{19, 4}
	TypeIfname  = Type{41, 16}
	TypeVerdict = Type{0xffffff00, 0}
)

// AddrType returns the type of a family's addresses.
func (f Family) AddrType() Type {
	if f == FamilyIPv6 {
		return TypeIPv6
	}
	return TypeIPv4
}

const (
	setConcat      = 0x80 // NFT_SET_CONCAT, missing in x/sys
	setDescConcat  = 2    // NFTA_SET_DESC_CONCAT
	setFieldLen    = 1    // NFTA_SET_FIELD_LEN
	setElemKeyEnd  = 10   // NFTA_SET_ELEM_KEY_END
	typeBits       = 6    // bits a type has in a concatenation's magic
	setCatchallFlg = 2    // NFT_SET_ELEM_CATCHALL
)

// Set describes a set, or a map if Data is not empty.
type Set struct {
	Table Table
	Name  string
	// Key and Data are concatenations, one Type each part.
	Key, Data []Type
	// Interval allows ranges: an element carries KeyEnd, inclusive for
	// concatenations, exclusive otherwise.
	Interval bool
	// Dynamic lets rules add elements, each with a time-out; Size bounds them.
	Dynamic bool
	Timeout time.Duration
	Size    uint32
}

// KeyLen is the length of a key in bytes, with the padding between parts.
func (s Set) KeyLen() int { return typesLen(s.Key) }

// DataLen is the length of a map's values in bytes, with the padding.
func (s Set) DataLen() int { return typesLen(s.Data) }

func typesLen(ts []Type) int {
	n := 0
	for _, t := range ts {
		n += (t.size + 3) &^ 3
	}
	return n
}

func typesMagic(ts []Type) uint32 {
	if len(ts) == 1 {
		return ts[0].magic
	}
	var m uint32
	for _, t := range ts {
		m = m<<typeBits | t.magic
	}
	return m
}

// keyLenAttr is what NFTA_SET_KEY_LEN wants: a lone type is not padded.
func keyLenAttr(ts []Type) uint32 {
	if len(ts) == 1 {
		return uint32(ts[0].size)
	}
	return uint32(typesLen(ts))
}

func (s Set) flags() uint32 {
	var f uint32
	if len(s.Data) > 0 {
		f |= unix.NFT_SET_MAP
	}
	if s.Interval {
		f |= unix.NFT_SET_INTERVAL
		if len(s.Key) > 1 {
			f |= setConcat
		}
	}
	if s.Dynamic {
		f |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	return f
}

// AddSet creates s; a set that exists with the same type is left as it is.
func (b *Batch) AddSet(s Set) {
	off := b.begin(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, s.Table.Family, "add set "+s.Table.String()+" "+s.Name)
	b.enc.String(unix.NFTA_SET_TABLE, s.Table.Name)
	b.enc.String(unix.NFTA_SET_NAME, s.Name)
	b.enc.BE32(unix.NFTA_SET_FLAGS, s.flags())
	b.enc.BE32(unix.NFTA_SET_KEY_TYPE, typesMagic(s.Key))
	b.enc.BE32(unix.NFTA_SET_KEY_LEN, keyLenAttr(s.Key))
	if len(s.Data) > 0 {
		b.enc.BE32(unix.NFTA_SET_DATA_TYPE, typesMagic(s.Data))
		b.enc.BE32(unix.NFTA_SET_DATA_LEN, keyLenAttr(s.Data))
	}
	b.enc.BE32(unix.NFTA_SET_ID, uint32(len(b.ops)))
	if s.Timeout > 0 {
		b.enc.BE64(unix.NFTA_SET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
	}
	b.setDesc(s)
	b.enc.Bytes(unix.NFTA_SET_USERDATA, s.userData())
	b.end(off)
}

// setDesc writes the size and, for ranges over a concatenation, the length of
// each part.
func (b *Batch) setDesc(s Set) {
	concat := s.Interval && len(s.Key) > 1
	if s.Size == 0 && !concat {
		return
	}
	n := b.enc.Nest(unix.NFTA_SET_DESC)
	if s.Size > 0 {
		b.enc.BE32(unix.NFTA_SET_DESC_SIZE, s.Size)
	}
	if concat {
		fields := b.enc.Nest(setDescConcat)
		for _, t := range s.Key {
			e := b.enc.Nest(unix.NFTA_LIST_ELEM)
			b.enc.BE32(setFieldLen, uint32(t.size))
			b.enc.End(e)
		}
		b.enc.End(fields)
	}
	b.enc.End(n)
}

// userData tells nft the byte order of key and data, without which it cannot
// list a single-part set correctly (libnftnl's NFTNL_UDATA_SET_KEYBYTEORDER
// and _DATABYTEORDER; 1 is host order, 2 big endian).
func (s Set) userData() []byte {
	ud := appendUserU32(nil, 0, byteOrder(s.Key))
	if len(s.Data) > 0 && s.Data[0] != TypeVerdict {
		ud = appendUserU32(ud, 1, byteOrder(s.Data))
	}
	return ud
}

func byteOrder(ts []Type) uint32 {
	if len(ts) == 1 && ts[0] == TypeMark {
		return 1
	}
	if len(ts) > 1 {
		return 0
	}
	return 2
}

func appendUserU32(ud []byte, typ byte, v uint32) []byte {
	ud = append(ud, typ, 4)
	return binary.NativeEndian.AppendUint32(ud, v)
}

// DeleteSet deletes a set, which no rule may use by then.
func (b *Batch) DeleteSet(t Table, name string) {
	off := b.begin(unix.NFT_MSG_DELSET, 0, t.Family, "delete set "+t.String()+" "+name)
	b.enc.String(unix.NFTA_SET_TABLE, t.Name)
	b.enc.String(unix.NFTA_SET_NAME, name)
	b.end(off)
}

// Element is one element of a set or map, in the kernel's own bytes: every
// part padded to 4 bytes, addresses and ports big endian, marks host endian.
type Element struct {
	Key string
	// KeyEnd is set for ranges over concatenations (inclusive).
	KeyEnd string
	// Value is a map's data; for verdict maps it is made by Goto or is Drop.
	Value string
	// End marks the exclusive end of a range in a single-part interval set.
	End bool
}

// ID returns what tells elements of a set apart: two with the same ID cannot both
// exist.
func (e *Element) ID() string {
	id := e.Key + e.KeyEnd
	if e.End {
		id += "\x00end"
	}
	return id
}

// Goto is the Value of a verdict map's element that goes to a chain.
func Goto(chain string) string { return verdictPrefix + chain }

// Drop is the Value of a verdict map's element that drops.
const Drop = verdictPrefix

// otherVerdict is the Value of an element read whose verdict is neither.
const otherVerdict = verdictPrefix + "\x00"

const nftGoto = 0xfffffffc // NFT_GOTO, -4

// verdictPrefix cannot begin a data value: those are never longer than 64
// bytes and verdicts are told apart by the set's type anyway.
const verdictPrefix = "\x00verdict:"

// AddElement adds e to set. Adding one that exists with the same value is not
// an error; with another value the transaction fails.
func (b *Batch) AddElement(t Table, set string, e Element) {
	b.element(unix.NFT_MSG_NEWSETELEM, t, set, e)
}

// DeleteElement deletes e, by its key, from set; the transaction fails with
// ENOENT if it is not there.
func (b *Batch) DeleteElement(t Table, set string, e Element) {
	e.Value = ""
	b.element(unix.NFT_MSG_DELSETELEM, t, set, e)
}

// FlushSet deletes all elements of a set.
func (b *Batch) FlushSet(t Table, name string) {
	off := b.begin(unix.NFT_MSG_DELSETELEM, 0, t.Family, "flush set "+t.String()+" "+name)
	b.enc.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
	b.enc.String(unix.NFTA_SET_ELEM_LIST_SET, name)
	b.end(off)
}

func (b *Batch) element(op uint16, t Table, set string, e Element) {
	o := &b.open
	full := o.count >= maxListElements || len(b.enc.Buf)-o.list > maxListBytes
	if !o.on || o.op != op || o.set != set || o.table != t || full {
		b.openElements(op, t, set)
	}
	EncodeElement(&b.enc, e)
	o.count++
}

// EncodeElement appends an element as an attribute of a list of elements.
func EncodeElement(x *attributes.Encoder, e Element) {
	n := x.Nest(unix.NFTA_LIST_ELEM)
	dataValue(x, unix.NFTA_SET_ELEM_KEY, e.Key)
	if e.KeyEnd != "" {
		dataValue(x, setElemKeyEnd, e.KeyEnd)
	}
	if e.Value != "" {
		elementData(x, e.Value)
	}
	if e.End {
		x.BE32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	x.End(n)
}

func (b *Batch) openElements(op uint16, t Table, set string) {
	name, flags := "add elements of ", uint16(unix.NLM_F_CREATE)
	switch op {
	case unix.NFT_MSG_DELSETELEM:
		name, flags = "delete elements of ", 0
	case unix.NFT_MSG_GETSETELEM:
		name, flags = "read elements of ", 0
	}
	off := b.begin(op, flags, t.Family, name+t.String()+" "+set)
	b.enc.String(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
	b.enc.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	b.open = openList{on: true, op: op, table: t, set: set, msg: off}
	b.open.list = b.enc.Nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
}

func (b *Batch) closeList() {
	if !b.open.on {
		return
	}
	b.open.on = false
	b.enc.End(b.open.list)
	b.end(b.open.msg)
}

func dataValue(x *attributes.Encoder, typ uint16, v string) {
	n := x.Nest(typ)
	x.Text(unix.NFTA_DATA_VALUE, v)
	x.End(n)
}

func elementData(x *attributes.Encoder, v string) {
	chain, verdict := strings.CutPrefix(v, verdictPrefix)
	if !verdict {
		dataValue(x, unix.NFTA_SET_ELEM_DATA, v)
		return
	}
	n := x.Nest(unix.NFTA_SET_ELEM_DATA)
	vd := x.Nest(unix.NFTA_DATA_VERDICT)
	if chain == "" {
		x.BE32(unix.NFTA_VERDICT_CODE, nfDrop)
	} else {
		x.BE32(unix.NFTA_VERDICT_CODE, nftGoto)
		x.String(unix.NFTA_VERDICT_CHAIN, chain)
	}
	x.End(vd)
	x.End(n)
}
