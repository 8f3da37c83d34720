// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// What the two turns before a fresh one granted, and it has not seen, it grants to
// nobody, as long as a part is free of what it has seen.
func TestEpochsTakeDifferentParts(t *testing.T) {
	for first := range 20 {
		unseen := map[uint16]bool{}
		seen := New(Ports()) // what was stored before all of this
		ports := Pool[uint16]{Name: "p", Spans: []PortRange{{First: 30000, Last: 30999}}, LowerBand: NodePortBand}
		for i := range uint16(500) {
			seen.Observe(Owner{Name: fmt.Sprint("stored", i)}, []uint16{30000 + 2*i}, t0)
		}
		for n := first; n < first+3; n++ {
			// Each has a allocations of its own, which knows what was stored.
			l := New(Ports())
			l.SetPool(ports)
			for allocation := range seen.All() {
				l.Observe(allocation.Owner, []uint16{allocation.Value}, t0)
			}
			for i := range 50 {
				v, err := l.Next("p", Ask{
					Owner: Owner{Name: fmt.Sprint("new", i)}, Now: t0, PendingFor: time.Minute, Random: rand.Uint64(),
					Epoch: Epoch{Number: n, Fresh: n > first}, // the first one has been at it for long
				})
				if err != nil {
					t.Fatal(err)
				}
				if unseen[v] {
					t.Fatalf("turn %d grants %d, which an earlier one granted", n, v)
				}
				unseen[v] = true
			}
		}
	}
}

// Whatever the turn, everything is given in the end, and the lower band last.
func TestEpochFindsEveryFreeValue(t *testing.T) {
	for _, size := range []uint16{1, 7, 8, 9, 16, 17, 100} {
		for number := range epochParts {
			for _, fresh := range []bool{false, true} {
				l := New(Ports())
				l.SetPool(Pool[uint16]{Name: "p", Spans: []PortRange{{First: 30000, Last: 30000 + size - 1}}, LowerBand: func(uint64) uint64 { return uint64(size / 3) }})
				lower := 30000 + size/3
				for i := range int(size) {
					v, err := l.Next("p", Ask{Owner: Owner{Name: fmt.Sprint(i)}, Now: t0, PendingFor: time.Minute, Random: rand.Uint64(), Epoch: Epoch{number, fresh}})
					if err != nil {
						t.Fatalf("%d of %d given: %v", i, size, err)
					}
					if wantLower := i >= int(size-size/3); (v < lower) != wantLower {
						t.Fatalf("value %d of %d is %d; the lower band ends at %d", i, size, v, lower)
					}
				}
			}
		}
	}
}

// In the long run every value is as likely as another, apart from those that are
// left to the epochs to come.
func TestEpochFindIsEven(t *testing.T) {
	seen := map[int]int{}
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: []PortRange{{First: 30000, Last: 30799}}})
	const picks = 60000
	for i := range picks {
		owner := Owner{Name: fmt.Sprint(i)}
		v, err := l.Next("p", Ask{Owner: owner, Now: t0, PendingFor: time.Minute, Random: rand.Uint64(), Epoch: Epoch{Number: 2}})
		if err != nil {
			t.Fatal(err)
		}
		seen[int(v-30000)/100]++
		l.Drop(v, owner)
	}
	for part := range epochParts {
		want := picks / (epochParts - nextParts)
		if part == 3 || part == 4 { // of the turns 4 and 3
			want = 0
		}
		if got := seen[part]; got < want*9/10 || got > want*11/10 {
			t.Errorf("part %d: %d of %d picks, want about %d", part, got, picks, want)
		}
	}
}
