// SPDX-License-Identifier: Apache-2.0

package attributes

import (
	"bytes"
	"strings"
	"testing"
)

// What was encoded is what is read, and every attribute begins at a multiple of 4.
func TestRoundTrip(t *testing.T) {
	var e Encoder
	e.Bytes(1, []byte{1, 2, 3})
	e.String(2, "name")
	e.Text(3, "text")
	e.Uint16(4, 0x1234)
	e.Uint32(5, 0x12345678)
	e.BE16(6, 0x1234)
	e.BE32(7, 0x12345678)
	e.BE64(8, 0x123456789)
	outer := e.Nest(9)
	e.BE32(1, 7)
	e.End(outer)
	if e.Err() != nil || len(e.Buf)%4 != 0 {
		t.Errorf("%v, %d bytes", e.Err(), len(e.Buf))
	}
	want := uint16(1)
	for a := Decode(e.Buf); a.Next(); {
		if a.Type != want {
			t.Fatalf("attribute %d, want %d", a.Type, want)
		}
		want++
		ok := false
		switch a.Type {
		case 1:
			ok = bytes.Equal(a.Data, []byte{1, 2, 3})
		case 2:
			ok = String(a.Data) == "name" && len(a.Data) == 5
		case 3:
			ok = string(a.Data) == "text"
		case 4:
			ok = Uint16(a.Data) == 0x1234
		case 5:
			ok = Uint32(a.Data) == 0x12345678
		case 6:
			ok = BE16(a.Data) == 0x1234 && len(a.Data) == 2
		case 7:
			ok = BE32(a.Data) == 0x12345678
		case 8:
			ok = BE32(a.Data[4:]) == 0x23456789
		case 9:
			for n := Decode(a.Data); n.Next(); {
				ok = n.Type == 1 && BE32(n.Data) == 7
			}
		}
		if !ok {
			t.Errorf("attribute %d came back as %x", a.Type, a.Data)
		}
	}
	if want != 10 {
		t.Errorf("%d attributes came back, want 9", want-1)
	}
}

// An attribute has 16 bits for its length.
func TestTooLong(t *testing.T) {
	long := strings.Repeat("x", maxLen-headerLen+1)
	for name, encode := range map[string]func(*Encoder){
		"text":   func(e *Encoder) { e.Text(1, long) },
		"bytes":  func(e *Encoder) { e.Bytes(1, []byte(long)) },
		"string": func(e *Encoder) { e.String(1, long[1:]) },
		"nest":   func(e *Encoder) { n := e.Nest(1); e.Text(1, long[:60000]); e.Text(1, long[:60000]); e.End(n) },
	} {
		var e Encoder
		encode(&e)
		if e.Err() == nil {
			t.Errorf("%s: no error", name)
		}
		e.Reset()
		if e.Text(1, long[1:]); e.Err() != nil {
			t.Errorf("%s: the longest that fits: %v", name, e.Err())
		}
	}
}

func FuzzAll(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Add([]byte{3, 0, 1, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		for a := Decode(b); a.Next(); {
			total += headerLen + len(a.Data)
		}
		if total > len(b) {
			t.Errorf("%d bytes of attributes in %d", total, len(b))
		}
	})
}
