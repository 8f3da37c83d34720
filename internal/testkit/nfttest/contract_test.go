// SPDX-License-Identifier: Apache-2.0

package nfttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

var at = nft.Table{Family: nft.FamilyIPv4, Name: "contract"}

func addr(last byte) string { return string([]byte{192, 0, 2, last}) }
func port(p uint16) string  { return string(append(binary.BigEndian.AppendUint16(nil, p), 0, 0)) }

// The sets of the contract.
var (
	plain    = nft.Set{Table: at, Name: "plain", Key: []nft.Type{nft.TypeIPv4}}
	values   = nft.Set{Table: at, Name: "values", Key: []nft.Type{nft.TypeIPv4, nft.TypeService}, Data: []nft.Type{nft.TypeMark}}
	verdicts = nft.Set{Table: at, Name: "verdicts", Key: []nft.Type{nft.TypeMark}, Data: []nft.Type{nft.TypeVerdict}}
	ranges   = nft.Set{Table: at, Name: "ranges", Key: []nft.Type{nft.TypeIPv4, nft.TypeIPv4}, Interval: true}
	sets     = []nft.Set{plain, values, verdicts, ranges}
)

func base(name string, priority int32) nft.Chain {
	return nft.Chain{Table: at, Name: name, Hook: &nft.Hook{Type: "filter", Num: expr.HookOutput, Priority: priority}}
}

type step struct {
	name string
	do   func(*nft.Batch)
}

func add(set nft.Set, es ...nft.Element) func(*nft.Batch) {
	return func(tx *nft.Batch) {
		for _, e := range es {
			tx.AddElement(at, set.Name, e)
		}
	}
}

func remove(set nft.Set, es ...nft.Element) func(*nft.Batch) {
	return func(tx *nft.Batch) {
		for _, e := range es {
			tx.DeleteElement(at, set.Name, e)
		}
	}
}

var steps = []step{
	{"delete a table that is not there", func(tx *nft.Batch) { tx.DeleteTable(at) }},
	{"a set of no table", func(tx *nft.Batch) { tx.AddSet(plain) }},
	{"table", func(tx *nft.Batch) { tx.AddTable(at); tx.DeleteTable(at); tx.AddTable(at) }},
	{"sets", func(tx *nft.Batch) {
		for _, s := range sets {
			tx.AddSet(s)
		}
	}},
	{"sets again", func(tx *nft.Batch) {
		for _, s := range sets {
			tx.AddSet(s)
		}
	}},
	{"a set with another key", func(tx *nft.Batch) { s := plain; s.Key = []nft.Type{nft.TypeIPv6}; tx.AddSet(s) }},
	{"chains", func(tx *nft.Batch) {
		tx.AddChain(nft.Chain{Table: at, Name: "regular"})
		tx.AddChain(base("hooked", 0))
		tx.AddChain(base("hooked", 0))
	}},
	{"a table that is there", func(tx *nft.Batch) { tx.AddTable(at) }},
	{"flush an empty chain", func(tx *nft.Batch) { tx.FlushChain(at, "hooked") }},
	{"flush an empty set", func(tx *nft.Batch) { tx.FlushSet(at, plain.Name) }},
	{"a chain that is there", func(tx *nft.Batch) { tx.AddChain(base("hooked", 0)) }},
	{"a chain at another priority", func(tx *nft.Batch) { tx.AddChain(base("hooked", 7)) }},
	{"a rule in no chain", func(tx *nft.Batch) { tx.AppendRule(at, "none", expr.For(at.Family).Drop().Rule("")) }},
	{"a rule to no chain", func(tx *nft.Batch) { tx.AppendRule(at, "hooked", expr.For(at.Family).Goto("none").Rule("")) }},
	{"a rule with no set", func(tx *nft.Batch) {
		tx.AppendRule(at, "hooked", expr.For(at.Family).Daddr(expr.R0).Lookup(expr.R0, expr.Name("none")).Drop().Rule(""))
	}},
	{"rules", func(tx *nft.Batch) {
		tx.AppendRule(at, "hooked", expr.For(at.Family).Daddr(expr.R0).Lookup(expr.R0, expr.Name(plain.Name)).Goto("regular").Rule("its comment"))
		tx.AppendRule(at, "regular", expr.For(at.Family).Accept().Rule(""))
	}},
	{"delete a chain that a rule leads to", func(tx *nft.Batch) { tx.FlushChain(at, "regular"); tx.DeleteChain(at, "regular") }},
	{"delete a set that a rule looks up", func(tx *nft.Batch) { tx.DeleteSet(at, plain.Name) }},
	{"delete what is not there", func(tx *nft.Batch) {
		tx.DeleteSet(at, "none")
		tx.DeleteChain(at, "none")
		tx.FlushChain(at, "none")
		tx.FlushSet(at, "none")
	}},
	{"elements", add(plain, nft.Element{Key: addr(1)}, nft.Element{Key: addr(2)})},
	{"an element that is there", add(plain, nft.Element{Key: addr(2)}, nft.Element{Key: addr(3)})},
	{"an element that is not there, among others", remove(plain, nft.Element{Key: addr(1)}, nft.Element{Key: addr(9)}, nft.Element{Key: addr(2)})},
	{"two refusals, and what is between", func(tx *nft.Batch) {
		remove(plain, nft.Element{Key: addr(8)})(tx)
		add(plain, nft.Element{Key: addr(7)})(tx)
		tx.AddElement(at, "none", nft.Element{Key: addr(1)})
	}},
	{"delete an element twice", remove(plain, nft.Element{Key: addr(1)}, nft.Element{Key: addr(1)})},
	{"delete and add in one", func(tx *nft.Batch) {
		remove(plain, nft.Element{Key: addr(1)})(tx)
		add(plain, nft.Element{Key: addr(1)})(tx)
	}},
	{"a key that is too short", add(plain, nft.Element{Key: "\x01\x02"})},
	{"a value in a set", add(plain, nft.Element{Key: addr(5), Value: "\x01\x00\x00\x00"})},
	{"values", add(values, nft.Element{Key: addr(1) + port(80), Value: "\x01\x00\x00\x00"}, nft.Element{Key: addr(1) + port(81), Value: "\x02\x00\x00\x00"})},
	{"the same value again", add(values, nft.Element{Key: addr(1) + port(80), Value: "\x01\x00\x00\x00"})},
	{"another value", add(values, nft.Element{Key: addr(1) + port(82), Value: "\x01\x00\x00\x00"}, nft.Element{Key: addr(1) + port(81), Value: "\x09\x00\x00\x00"})},
	{"another value, the old one deleted before", func(tx *nft.Batch) {
		remove(values, nft.Element{Key: addr(1) + port(81)})(tx)
		add(values, nft.Element{Key: addr(1) + port(81), Value: "\x09\x00\x00\x00"})(tx)
	}},
	{"no value in a map", add(values, nft.Element{Key: addr(1) + port(83)})},
	{"verdicts", add(verdicts, nft.Element{Key: "\x01\x00\x00\x00", Value: nft.Goto("regular")}, nft.Element{Key: "\x02\x00\x00\x00", Value: nft.Drop})},
	{"a verdict to no chain", add(verdicts, nft.Element{Key: "\x03\x00\x00\x00", Value: nft.Goto("none")})},
	{"a chain that an element leads to", func(tx *nft.Batch) {
		tx.FlushChain(at, "hooked")
		tx.FlushChain(at, "regular")
		tx.DeleteChain(at, "regular")
	}},
	{"ranges", add(ranges, nft.Element{Key: addr(1) + addr(0), KeyEnd: addr(1) + addr(63)}, nft.Element{Key: addr(1) + addr(128), KeyEnd: addr(1) + addr(255)})},
	{"a range again", add(ranges, nft.Element{Key: addr(1) + addr(0), KeyEnd: addr(1) + addr(63)})},
	{"a range inside another", add(ranges, nft.Element{Key: addr(1) + addr(130), KeyEnd: addr(1) + addr(140)})},
	{"the same range for another key", add(ranges, nft.Element{Key: addr(2) + addr(130), KeyEnd: addr(2) + addr(140)})},
	{"no such range", remove(ranges, nft.Element{Key: addr(1) + addr(0), KeyEnd: addr(1) + addr(62)})},
	{"a range goes", remove(ranges, nft.Element{Key: addr(1) + addr(0), KeyEnd: addr(1) + addr(63)})},
	{"flush", func(tx *nft.Batch) { tx.FlushSet(at, verdicts.Name); tx.FlushChain(at, "hooked") }},
	{"delete what nothing refers to any longer", func(tx *nft.Batch) {
		tx.DeleteChain(at, "regular")
		tx.DeleteSet(at, plain.Name)
		tx.DeleteChain(at, "hooked")
	}},
	{"delete the table", func(tx *nft.Batch) { tx.DeleteTable(at) }},
}

func text(e nft.Element) string {
	return fmt.Sprintf("%+q-%+q: %+q %v", e.Key, e.KeyEnd, e.Value, e.End)
}

func texts(es []nft.Element) (out []string) {
	for _, e := range es {
		out = append(out, text(e))
	}
	return out
}

// outcome is what comes of a transaction: what is refused, and what is there then.
type outcome struct {
	Refused []string
	State   []string
	Changed bool // the generation
}

func carryOut(t *testing.T, c *nft.Conn, s step) (out outcome) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	before, err := c.Generation()
	must(err)
	var tx nft.Batch
	s.do(&tx)
	err = c.Commit(&tx)
	for _, e := range nft.Refusals(err) {
		refusal := fmt.Sprintf("%s: %v", e.Op, e.Err)
		if len(e.Elements) > 0 {
			refusal += fmt.Sprintf(" %+q", texts(e.Elements))
		}
		out.Refused = append(out.Refused, refusal)
	}
	if err != nil && out.Refused == nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	after, err := c.Generation()
	must(err)
	out.Changed = before != after
	tables, err := c.Tables(at.Family)
	must(err)
	if slices.Contains(tables, at.Name) {
		out.State = append(out.State, "table")
	}
	chains, err := c.Chains(at)
	must(err)
	for _, name := range slices.Sorted(maps.Keys(chains)) {
		ch := chains[name]
		found := "chain " + name
		if ch.Hook != nil {
			found += fmt.Sprintf(" %+v %v", *ch.Hook, ch.PolicyDrop)
		}
		for _, r := range ch.Rules {
			found += fmt.Sprintf(" rule %q", r.UserData)
		}
		out.State = append(out.State, found)
	}
	have, err := c.Sets(at)
	must(err)
	for _, name := range slices.Sorted(maps.Keys(have)) {
		found := "set " + name
		for _, s := range sets {
			if s.Name == name {
				found += fmt.Sprintf(" same %v", have[name].Same(s))
			}
		}
		var elements []string
		must(c.Elements(at, name, func(e nft.Element) {
			elements = append(elements, text(e))
			if e.KeyEnd != "" {
				return // Element is not for ranges
			}
			if one, ok, err := c.Element(at, name, e.Key); err != nil || !ok || one != e {
				t.Errorf("%s: element %s of %s by itself is %s, %v, %v", s.name, text(e), name, text(one), ok, err)
			}
		}))
		slices.Sort(elements)
		out.State = append(out.State, found+" "+strings.Join(elements, " "))
	}
	_, ok, err := c.Element(at, plain.Name, addr(99))
	must(err)
	if ok {
		t.Errorf("%s: an element that is in no set", s.name)
	}
	return out
}

// A Kernel takes and refuses what Linux does, and has then what Linux has.
func TestContract(t *testing.T) {
	nstest.Require(t)
	real, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer real.Close()
	fake := NewKernel().Conn()
	refused := 0
	for _, s := range steps {
		want, got := carryOut(t, real, s), carryOut(t, fake, s)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-Linux +fake):\n%s", s.name, diff)
		}
		refused += len(want.Refused)
	}
	if refused < 20 {
		t.Errorf("Linux refused %d messages in all: too few to mean anything", refused)
	}
}

// Tables are removed, and replaced, as on Linux.
func TestRemoveTables(t *testing.T) {
	k := NewKernel()
	c := k.Conn()
	for _, s := range steps[2:24] {
		carryOut(t, c, s)
	}
	if err := c.RemoveTables(at, nft.Table{Family: nft.FamilyIPv6, Name: "none"}); err != nil {
		t.Fatal(err)
	}
	if len(k.tables) > 0 {
		t.Errorf("left: %v", k.tables)
	}
}

// A dump that a change spoils is read again, until it is given up.
func TestInterruptedDumps(t *testing.T) {
	k := NewKernel()
	c := k.Conn()
	for _, s := range steps[2:20] {
		carryOut(t, c, s)
	}
	read := func() (n int, err error) {
		err = c.Elements(at, plain.Name, func(nft.Element) { n++ })
		return n, err
	}
	k.Interrupt(3)
	if n, err := read(); n != 2 || err != nil {
		t.Errorf("%d elements, %v; want 2", n, err)
	}
	k.Interrupt(1000)
	if _, err := read(); !errors.Is(err, nft.ErrInterrupted) {
		t.Errorf("%v, want ErrInterrupted", err)
	}
}

// A fault comes before a transaction or behind it; the next request is answered.
func TestFaults(t *testing.T) {
	k := NewKernel()
	c := k.Conn()
	var tx nft.Batch
	tx.AddTable(at)
	tx.DeleteTable(at)
	tx.AddTable(at)
	done := map[bool]int{} // whether it was carried out
	for seed := range uint64(100) {
		k.Faults(rand.New(rand.NewPCG(seed, 1)), 0.5)
		before := k.generation
		err := c.Commit(&tx)
		k.Faults(nil, 0)
		if err != nil && !errors.Is(err, ErrFault) {
			t.Fatal(err)
		}
		if err != nil {
			done[k.generation != before]++
		}
		if _, err := c.Tables(at.Family); err != nil {
			t.Fatal(err)
		}
	}
	if done[true] < 10 || done[false] < 10 || done[true]+done[false] != k.Fault() {
		t.Errorf("faults behind and before: %v of %d", done, k.Fault())
	}
}
