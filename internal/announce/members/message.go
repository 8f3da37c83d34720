// SPDX-License-Identifier: Apache-2.0

package members

import "encoding/binary"

// kind of a message between two agents.
type kind uint8

const (
	ping  kind = iota + 1 // are you there?
	ack                   // yes, this answers your ping of this number
	relay                 // please ping target for me
	yes                   // target answered me
	no                    // target did not answer me
	facts                 // what I tell about myself, number is its version
	lastKind
)

// message travels in memberlist's encrypted user messages.
//
//	kind 1 | number 8 | len 1 | from | len 1 | target | body
type message struct {
	kind   kind
	number uint64
	from   string
	target string // relay, yes, no
	body   []byte // facts: these; ping, ack: how late the sender's timers are, 2 bytes, ms
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
	if len(b) < 11 || b[0] == 0 || b[0] >= byte(lastKind) {
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
