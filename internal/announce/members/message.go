// SPDX-License-Identifier: Apache-2.0

package members

import (
	"encoding/binary"
	"math"
	"time"
)

// kind of a message between two agents.
type kind uint8

const (
	ping     kind = iota + 1 // are you there? body: status
	ack                      // yes, this answers your ping; body: status
	relay                    // former version only: please ping target for me
	yes                      // former version only: target answered me
	no                       // target did not answer me; body: its nodeinfo.ID
	infoPart                 // a part of the sender's Info; body: part
	carry                    // please pass this packet on; body: it
	lastKind
)

// status is the body of a ping or ack.
//
//	nonce 8 | late 2, ms | stamp 4 | version 8 | known 8
type status struct {
	nonce   uint64        // of the ping, which the ack repeats
	late    time.Duration // how late the sender's timers are
	stamp   uint32        // the sender's clock on the link (Members.Stamp)
	version uint64        // of the sender's Info; 0 for none
	known   uint64        // version of the receiver's Info that the sender has
}

const statusLength = 30

func (s status) encode() []byte {
	b := make([]byte, 0, statusLength)
	b = binary.BigEndian.AppendUint64(b, s.nonce)
	b = binary.BigEndian.AppendUint16(b, uint16(min(s.late.Milliseconds(), math.MaxUint16)))
	b = binary.BigEndian.AppendUint32(b, s.stamp)
	b = binary.BigEndian.AppendUint64(b, s.version)
	return binary.BigEndian.AppendUint64(b, s.known)
}

// decodeStatus takes no notice of what a later version adds at the end.
func decodeStatus(b []byte) (s status, ok bool) {
	if len(b) < statusLength {
		return status{}, false
	}
	return status{
		nonce:   binary.BigEndian.Uint64(b),
		late:    time.Duration(binary.BigEndian.Uint16(b[8:])) * time.Millisecond,
		stamp:   binary.BigEndian.Uint32(b[10:]),
		version: binary.BigEndian.Uint64(b[14:]),
		known:   binary.BigEndian.Uint64(b[22:]),
	}, true
}

// partLength is how many bytes of an Info one packet carries: no packet is cut into
// fragments.
const partLength = 1024

// part is a part of an Info, beginning at offset.
//
//	version 8 | total 4 | offset 4 | bytes
type part struct {
	version       uint64
	total, offset uint32
	bytes         []byte
}

func (p part) encode() []byte {
	b := make([]byte, 0, 16+len(p.bytes))
	b = binary.BigEndian.AppendUint64(b, p.version)
	b = binary.BigEndian.AppendUint32(b, p.total)
	b = binary.BigEndian.AppendUint32(b, p.offset)
	return append(b, p.bytes...)
}

// decodePart accepts what split makes.
func decodePart(b []byte) (p part, ok bool) {
	if len(b) < 16 {
		return part{}, false
	}
	p = part{
		version: binary.BigEndian.Uint64(b),
		total:   binary.BigEndian.Uint32(b[8:]), offset: binary.BigEndian.Uint32(b[12:]),
		bytes: b[16:],
	}
	if p.version == 0 || p.total > MaxInfo || p.offset%partLength != 0 || p.offset > p.total {
		return part{}, false
	}
	return p, uint32(len(p.bytes)) == min(partLength, p.total-p.offset)
}

// split cuts an Info into parts, at least one.
func split(version uint64, b []byte) []part {
	out := []part{}
	for offset := 0; offset == 0 || offset < len(b); offset += partLength {
		out = append(out, part{version, uint32(len(b)), uint32(offset), b[offset:min(offset+partLength, len(b))]})
	}
	return out
}

// puzzle puts parts together.
type puzzle struct {
	version uint64
	bytes   []byte
	missing int
	got     []bool
}

// add returns the whole once it is complete.
func (z *puzzle) add(p part) (whole []byte, ok bool) {
	if z.version != p.version || len(z.bytes) != int(p.total) || z.got == nil {
		n := max(1, (int(p.total)+partLength-1)/partLength)
		*z = puzzle{version: p.version, bytes: make([]byte, p.total), missing: n, got: make([]bool, n)}
	}
	i := int(p.offset) / partLength
	if i >= len(z.got) || z.got[i] {
		return nil, false
	}
	z.got[i] = true
	z.missing--
	copy(z.bytes[p.offset:], p.bytes)
	if z.missing > 0 {
		return nil, false
	}
	whole = z.bytes
	*z = puzzle{}
	return whole, true
}

// message is what agents of a former version (up to 0.1) send in memberlist's
// encrypted user messages, and are sent. Only from shows its sender.
//
//	kind 1 | number 8 | len 1 | from | len 1 | target | body
type message struct {
	kind   kind
	number uint64
	from   string
	target string // relay, yes, no
	body   []byte // infoPart: the Info; ping, ack: how late the sender's timers are, 2 bytes, ms
}

func (m message) encode() []byte {
	b := append(make([]byte, 0, 11+len(m.from)+len(m.target)+len(m.body)), byte(m.kind))
	b = binary.BigEndian.AppendUint64(b, m.number)
	b = append(append(b, byte(len(m.from))), m.from...)
	b = append(append(b, byte(len(m.target))), m.target...)
	return append(b, m.body...)
}

// decode copies what it keeps of b.
func decode(b []byte) (m message, ok bool) {
	if len(b) < 11 || b[0] == 0 || b[0] > byte(infoPart) {
		return message{}, false
	}
	m.kind, m.number = kind(b[0]), binary.BigEndian.Uint64(b[1:])
	b = b[9:]
	for _, field := range []*string{&m.from, &m.target} {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return message{}, false
		}
		*field = string(b[1 : 1+int(b[0])])
		b = b[1+int(b[0]):]
	}
	if len(b) > 0 {
		m.body = append([]byte(nil), b...)
	}
	return m, m.from != ""
}
