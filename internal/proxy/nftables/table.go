// SPDX-License-Identifier: Apache-2.0

package nftables

import "hash/maphash"

// table holds the elements of one set, with keys of one length and values of
// one length, in flat memory that the garbage collector does not look into:
// a full sync looks up every element of the kernel's in it.
type table struct {
	keyLen, valueLen int
	// bytes has entry after entry, each a key and a value; entries what is known
	// of them.
	bytes   []byte
	entries []entry
	// slots is an open-addressing index: entry number + 1, or 0.
	slots []uint32
}

type entry struct {
	// count is how often the element was put in.
	count uint32
	// seen and differs are what the kernel has: the key, with another value.
	seen, differs bool
}

var tableSeed = maphash.MakeSeed()

func newTable(keyLen, valueLen int) *table {
	return &table{keyLen: keyLen, valueLen: valueLen, slots: make([]uint32, 64)}
}

func (t *table) key(i int) []byte {
	at := i * (t.keyLen + t.valueLen)
	return t.bytes[at : at+t.keyLen]
}

func (t *table) value(i int) []byte {
	at := i*(t.keyLen+t.valueLen) + t.keyLen
	return t.bytes[at : at+t.valueLen]
}

// put adds an element and says whether there was none with its key, whose
// value stays.
func (t *table) put(key, value string) bool {
	if len(key) != t.keyLen || len(value) != t.valueLen {
		panic("nftables: element of another shape than its set")
	}
	if 4*(len(t.entries)+1) > 3*len(t.slots) {
		t.grow()
	}
	mask := uint64(len(t.slots) - 1)
	at := maphash.String(tableSeed, key) & mask
	for ; t.slots[at] != 0; at = (at + 1) & mask {
		if i := int(t.slots[at] - 1); string(t.key(i)) == key {
			t.entries[i].count++
			return false
		}
	}
	t.bytes = append(append(t.bytes, key...), value...)
	t.entries = append(t.entries, entry{count: 1})
	t.slots[at] = uint32(len(t.entries))
	return true
}

// find gives the entry with a key, -1 if there is none.
func (t *table) find(key []byte) int {
	mask := uint64(len(t.slots) - 1)
	for at := maphash.Bytes(tableSeed, key) & mask; t.slots[at] != 0; at = (at + 1) & mask {
		if i := int(t.slots[at] - 1); string(t.key(i)) == string(key) {
			return i
		}
	}
	return -1
}

func (t *table) grow() {
	t.slots = make([]uint32, 2*len(t.slots))
	mask := uint64(len(t.slots) - 1)
	for i := range t.entries {
		at := maphash.Bytes(tableSeed, t.key(i)) & mask
		for t.slots[at] != 0 {
			at = (at + 1) & mask
		}
		t.slots[at] = uint32(i + 1)
	}
}
