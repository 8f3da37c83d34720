// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	headerLen = 4 // struct nlattr: length, type
	// maxLen is the most that an attribute's length, header included, can say.
	maxLen = 0xffff
)

// Encoder appends attributes, each with its padding, to Buf. The zero value is
// ready to use.
type Encoder struct {
	Buf []byte
	err error
}

// Err returns the first attribute that was too long, which makes what Buf holds
// worthless.
func (e *Encoder) Err() error { return e.err }

// Reset empties the encoder and keeps the memory of Buf.
func (e *Encoder) Reset() { *e = Encoder{Buf: e.Buf[:0]} }

func (e *Encoder) header(typ uint16, n int) {
	if n+headerLen > maxLen {
		e.fail(n + headerLen)
	}
	e.Buf = binary.NativeEndian.AppendUint16(e.Buf, uint16(headerLen+n))
	e.Buf = binary.NativeEndian.AppendUint16(e.Buf, typ)
}

func (e *Encoder) fail(n int) {
	if e.err == nil {
		e.err = fmt.Errorf("attribute of %d bytes: at most %d fit", n, maxLen)
	}
}

func (e *Encoder) pad() {
	for len(e.Buf)%4 != 0 {
		e.Buf = append(e.Buf, 0)
	}
}

// Bytes appends data as it is.
func (e *Encoder) Bytes(typ uint16, data []byte) {
	e.header(typ, len(data))
	e.Buf = append(e.Buf, data...)
	e.pad()
}

// Text is Bytes for a string.
func (e *Encoder) Text(typ uint16, data string) {
	e.header(typ, len(data))
	e.Buf = append(e.Buf, data...)
	e.pad()
}

// String appends s and a NUL.
func (e *Encoder) String(typ uint16, s string) {
	e.header(typ, len(s)+1)
	e.Buf = append(append(e.Buf, s...), 0)
	e.pad()
}

// Uint16 appends v in the host's byte order.
func (e *Encoder) Uint16(typ, v uint16) {
	e.header(typ, 2)
	e.Buf = append(binary.NativeEndian.AppendUint16(e.Buf, v), 0, 0)
}

// Uint32 appends v in the host's byte order.
func (e *Encoder) Uint32(typ uint16, v uint32) {
	e.header(typ, 4)
	e.Buf = binary.NativeEndian.AppendUint32(e.Buf, v)
}

// BE16 appends v in network byte order.
func (e *Encoder) BE16(typ, v uint16) {
	e.header(typ, 2)
	e.Buf = append(binary.BigEndian.AppendUint16(e.Buf, v), 0, 0)
}

// BE32 appends v in network byte order.
func (e *Encoder) BE32(typ uint16, v uint32) {
	e.header(typ, 4)
	e.Buf = binary.BigEndian.AppendUint32(e.Buf, v)
}

// BE64 appends v in network byte order.
func (e *Encoder) BE64(typ uint16, v uint64) {
	e.header(typ, 8)
	e.Buf = binary.BigEndian.AppendUint64(e.Buf, v)
}

// Nest opens an attribute that holds those that follow; the returned offset is
// what End needs.
func (e *Encoder) Nest(typ uint16) int {
	off := len(e.Buf)
	e.Buf = append(e.Buf, 0, 0)
	e.Buf = binary.NativeEndian.AppendUint16(e.Buf, typ|unix.NLA_F_NESTED)
	return off
}

// End closes the attribute that Nest opened at off.
func (e *Encoder) End(off int) {
	n := len(e.Buf) - off
	if n > maxLen {
		e.fail(n)
	}
	binary.NativeEndian.PutUint16(e.Buf[off:], uint16(n))
}

// Decoder walks over attributes, and allocates nothing.
//
//	for a := attributes.Decode(b); a.Next(); {
//		use(a.Type, a.Data)
//	}
type Decoder struct {
	// Type is without its flags. Data, the payload, is a part of what is decoded.
	Type uint16
	Data []byte
	rest []byte
}

// Decode returns a Decoder of the attributes in b.
func Decode(b []byte) Decoder { return Decoder{rest: b} }

// Next goes to the next attribute. It returns false at the end, and at the first
// that is malformed.
func (d *Decoder) Next() bool {
	if len(d.rest) < headerLen {
		return false
	}
	n := int(binary.NativeEndian.Uint16(d.rest))
	if n < headerLen || n > len(d.rest) {
		return false
	}
	d.Type = binary.NativeEndian.Uint16(d.rest[2:]) &^ uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)
	d.Data = d.rest[headerLen:n]
	d.rest = d.rest[min((n+3)&^3, len(d.rest)):]
	return true
}

// String returns the payload up to its NUL.
func String(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// Uint16 returns the number in host byte order that begins b, 0 if b is too short.
func Uint16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.NativeEndian.Uint16(b)
}

// Uint32 returns the number in host byte order that begins b, 0 if b is too short.
func Uint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// BE16 returns the number in network byte order that begins b, 0 if b is too short.
func BE16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// BE32 returns the number in network byte order that begins b, 0 if b is too short.
func BE32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
