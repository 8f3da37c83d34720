// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var table = Table{Family: FamilyIPv6, Name: "t"}

func word(i int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(i))) }

// dial gives a connection and a table with a map of IPv6 addresses and ports.
func dial(t *testing.T) (*Conn, Set) {
	t.Helper()
	nstest.Require(t, "ip")
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	m := Set{Table: table, Name: "m", Key: []Type{TypeIPv6, TypeMark}, Data: []Type{TypeIPv6, TypeService}}
	var b Batch
	b.AddTable(table)
	b.DeleteTable(table)
	b.AddTable(table)
	b.AddSet(m)
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	return c, m
}

func elementOf(i int) Element {
	return Element{Key: strings.Repeat("k", 16) + word(i), Value: strings.Repeat("v", 16) + "\x1f\x90\x00\x00"}
}

// Far more than one attribute holds goes in one transaction and comes back.
func TestManyElements(t *testing.T) {
	const n = 30_000
	c, m := dial(t)
	var b Batch
	for i := range n {
		b.AddElement(table, m.Name, elementOf(i))
	}
	if b.Len() < n/maxListElements {
		t.Errorf("%d messages for %d elements", b.Len(), n)
	}
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	if err := c.Elements(table, m.Name, func(e Element) { have[e.Key] = e.Value }); err != nil {
		t.Fatal(err)
	}
	if len(have) != n {
		t.Fatalf("%d elements came back, want %d", len(have), n)
	}
	for i := range n {
		if e := elementOf(i); have[e.Key] != e.Value {
			t.Fatalf("element %d came back as %q", i, have[e.Key])
		}
	}
}

// All or nothing, and the refusal says what was refused.
func TestRefusalIsNamedAndWhole(t *testing.T) {
	c, m := dial(t)
	var b Batch
	b.AddElement(table, m.Name, elementOf(1))
	b.DeleteElement(table, m.Name, elementOf(2))
	b.AddElement(table, "no-such-map", elementOf(3))
	err := c.Commit(&b)
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, unix.ENOENT) {
		t.Fatalf("%v, want *Error with ENOENT", err)
	}
	if text := err.Error(); !strings.Contains(text, "delete elements of ip6 t m") || !strings.Contains(text, "no-such-map") {
		t.Errorf("error does not name both refusals: %s", text)
	}
	if err := c.Elements(table, m.Name, func(Element) { t.Error("half of a refused transaction was applied") }); err != nil {
		t.Error(err)
	}
	b.Reset()
	b.AddElement(table, m.Name, elementOf(1))
	if err := c.Commit(&b); err != nil {
		t.Errorf("the next transaction: %v", err)
	}
}

func TestEmptyBatch(t *testing.T) {
	c, _ := dial(t)
	if err := c.Commit(&Batch{}); err != nil {
		t.Error(err)
	}
}

func TestReadWhatIsMissing(t *testing.T) {
	c, _ := dial(t)
	none := Table{Family: FamilyIPv4, Name: "none"}
	chains, err := c.Chains(none)
	if err != nil || len(chains) != 0 {
		t.Errorf("chains of no table: %v, %v", chains, err)
	}
	sets, err := c.Sets(none)
	if err != nil || len(sets) != 0 {
		t.Errorf("sets of no table: %v, %v", sets, err)
	}
	if err := c.Elements(none, "none", func(Element) { t.Error("an element of no set") }); err != nil {
		t.Error(err)
	}
}

func TestSetsComeBackAsMade(t *testing.T) {
	c, _ := dial(t)
	made := []Set{
		{Table: table, Name: "plain", Key: []Type{TypeIPv6}},
		{Table: table, Name: "ranges", Key: []Type{TypeIPv6}, Interval: true},
		{Table: table, Name: "concatenated-ranges", Key: []Type{TypeIPv6, TypeProto, TypeIPv6}, Interval: true},
		{Table: table, Name: "verdicts", Key: []Type{TypeMark}, Data: []Type{TypeVerdict}},
		{Table: table, Name: "dynamic", Key: []Type{TypeIPv6, TypeService}, Data: []Type{TypeMark}, Dynamic: true, Size: 100},
	}
	var b Batch
	for _, s := range made {
		b.AddSet(s)
	}
	if err := c.Commit(&b); err != nil {
		t.Fatal(err)
	}
	have, err := c.Sets(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range made {
		if !have[s.Name].Same(s) {
			t.Errorf("%s came back as %+v", s.Name, have[s.Name])
		}
		other := s
		other.Key = []Type{TypeMark, TypeMark}
		if have[s.Name].Same(other) {
			t.Errorf("%s passes for a set with another key", s.Name)
		}
	}
}

// Whatever the kernel answers is read without a panic.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 1, 2, 3, 4})
	f.Add([]byte{3, 0, 1, 0})
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) {
		decodeElement(b, &RawElement{})
		decodeChain(b)
		decodeRule(b)
	})
}
