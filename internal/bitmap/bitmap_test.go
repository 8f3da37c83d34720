// SPDX-License-Identifier: Apache-2.0

package bitmap

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// model is the plain thing that a Bitmap must equal.
type model struct {
	size uint64
	used map[uint64]bool
}

func (m model) find(from, to uint64) (uint64, bool) {
	for n := from; n < min(to, m.size); n++ {
		if !m.used[n] {
			return n, true
		}
	}
	return 0, false
}

func (m model) runs() []Run {
	var out []Run
	for n := uint64(0); n < m.size; n++ {
		switch {
		case !m.used[n]:
		case len(out) > 0 && out[len(out)-1].To == n:
			out[len(out)-1].To++
		default:
			out = append(out, Run{n, n + 1})
		}
	}
	return out
}

// check compares everything that can be observed.
func (m model) check(t *testing.T, b *Bitmap) {
	t.Helper()
	if b.Used() != uint64(len(m.used)) || b.Free() != m.size-uint64(len(m.used)) {
		t.Fatalf("used %d, free %d; want %d, %d", b.Used(), b.Free(), len(m.used), m.size-uint64(len(m.used)))
	}
	if diff := cmp.Diff(m.runs(), slices.Collect(b.Runs())); diff != "" {
		t.Fatalf("runs (-want +got):\n%s", diff)
	}
	switch f := b.form.(type) {
	case *tree:
		checkNode(t, &f.root, f.level)
	case *flat:
		checkFlat(t, f)
	}
}

// forms makes an empty set of the size in each form.
func forms(size uint64) map[string]*Bitmap {
	return map[string]*Bitmap{
		"flat": {size: size, form: newFlat(size)},
		"tree": {size: size, form: newTree(size)},
	}
}

func checkFlat(t *testing.T, f *flat) {
	t.Helper()
	for k, level := range f.levels[1:] {
		for i, below := range f.levels[k] {
			if summary := level[i/64]>>(i%64)&1 != 0; summary != (below == allOnes) {
				t.Fatalf("level %d says word %d is full: %v, it is %x", k+1, i, summary, below)
			}
		}
	}
}

// checkNode checks the invariants that doc.go states.
func checkNode(t *testing.T, nd *node, level int) {
	t.Helper()
	if nd.full&nd.part != 0 {
		t.Fatalf("level %d: children %x both full and stored", level, nd.full&nd.part)
	}
	stored := bits.OnesCount64(nd.part)
	if level == 1 {
		if len(nd.words) != stored || len(nd.kids) != 0 {
			t.Fatalf("level 1: %d words, %d kids for %d bits", len(nd.words), len(nd.kids), stored)
		}
		for _, w := range nd.words {
			if w == 0 || w == allOnes {
				t.Fatalf("level 1: word %x is stored", w)
			}
		}
		return
	}
	if len(nd.kids) != stored || len(nd.words) != 0 {
		t.Fatalf("level %d: %d kids, %d words for %d bits", level, len(nd.kids), len(nd.words), stored)
	}
	for _, kid := range nd.kids {
		if kid.isEmpty() || kid.isFull() {
			t.Fatalf("level %d: an empty or full child is stored", level)
		}
		checkNode(t, kid, level-1)
	}
}

// step applies one operation, coded in three bytes and a number, to both.
func step(t *testing.T, b *Bitmap, m model, op byte, x, y uint64) {
	t.Helper()
	n, lo, hi := x%m.size, x%(m.size+1), y%(m.size+1)
	lo, hi = min(lo, hi), max(lo, hi)
	switch op % 8 {
	case 0, 1:
		if got, want := b.Set(n), !m.used[n]; got != want {
			t.Fatalf("Set(%d) = %v, want %v", n, got, want)
		}
		m.used[n] = true
	case 2, 3:
		if got, want := b.Clear(n), m.used[n]; got != want {
			t.Fatalf("Clear(%d) = %v, want %v", n, got, want)
		}
		delete(m.used, n)
	case 4:
		before := len(m.used)
		added := b.SetRange(lo, hi)
		for i := lo; i < hi; i++ {
			m.used[i] = true
		}
		if want := uint64(len(m.used) - before); added != want {
			t.Fatalf("SetRange(%d, %d) = %d, want %d", lo, hi, added, want)
		}
	case 5:
		for i := lo; i < hi; i++ {
			b.Clear(i)
			delete(m.used, i)
		}
	case 6:
		got, ok := b.Find(lo, hi)
		want, wantOK := m.find(lo, hi)
		if got != want || ok != wantOK {
			t.Fatalf("Find(%d, %d) = %d, %v; want %d, %v", lo, hi, got, ok, want, wantOK)
		}
	case 7:
		got, ok := b.FindRandom(x*0x9e3779b97f4a7c15, lo, hi)
		if _, wantOK := m.find(lo, hi); ok != wantOK {
			t.Fatalf("FindRandom(%d, %d) found: %v, want %v", lo, hi, ok, wantOK)
		}
		if ok && (got < lo || got >= hi || m.used[got]) {
			t.Fatalf("FindRandom(%d, %d) = %d, which is outside or used", lo, hi, got)
		}
	}
	if got, want := b.Has(n), m.used[n]; got != want {
		t.Fatalf("Has(%d) = %v, want %v", n, got, want)
	}
}

func TestEqualsMap(t *testing.T) {
	sizes := []uint64{1, 2, 63, 64, 65, 254, 255, 4095, 4096, 4097, 5000}
	for _, size := range sizes {
		for seed := range uint64(20) {
			for form, b := range forms(size) {
				t.Run(fmt.Sprintf("%s of %d seed %d", form, size, seed), func(t *testing.T) {
					rng := rand.New(rand.NewPCG(size, seed))
					m := model{size, map[uint64]bool{}}
					for range 60 {
						step(t, b, m, byte(rng.Uint32()), rng.Uint64(), rng.Uint64())
					}
					m.check(t, b)
				})
			}
		}
	}
}

func FuzzEqualsMap(f *testing.F) {
	f.Add(uint16(65), []byte{0, 1, 2, 3, 4, 250})
	f.Add(uint16(4097), []byte{4, 0, 255, 2, 9, 9, 6, 0, 1})
	f.Fuzz(func(t *testing.T, rawSize uint16, ops []byte) {
		size := uint64(rawSize)%9000 + 1
		for _, b := range forms(size) {
			m := model{size, map[uint64]bool{}}
			for ops := ops; len(ops) >= 3; ops = ops[3:] {
				step(t, b, m, ops[0], uint64(ops[1])*size/256, uint64(ops[2])*size/256)
			}
			m.check(t, b)
		}
	})
}

func TestSetAllThenClear(t *testing.T) {
	for _, size := range []uint64{1, 64, 100, 4096, 70000} {
		for form, b := range forms(size) {
			rng := rand.New(rand.NewPCG(1, size))
			for i := range size {
				n, ok := b.FindRandom(rng.Uint64(), 0, size)
				if !ok || !b.Set(n) {
					t.Fatalf("%s of %d: pick %d: got %d, %v", form, size, i, n, ok)
				}
			}
			if n, ok := b.FindRandom(0, 0, size); ok {
				t.Errorf("%s of %d: full, yet %d is free", form, size, n)
			}
			if diff := cmp.Diff([]Run{{0, size}}, slices.Collect(b.Runs())); diff != "" {
				t.Errorf("%s of %d: full set (-want +got):\n%s", form, size, diff)
			}
			for n := range size {
				b.Clear(n)
			}
			model{size, nil}.check(t, b)
		}
	}
}

// The largest practical set must cost memory by what is used, not by its size.
func TestSparse(t *testing.T) {
	const size = 1 << 32
	b := New(size)
	rng := rand.New(rand.NewPCG(3, 4))
	used := map[uint64]bool{}
	allocated := testing.AllocsPerRun(1, func() {
		for len(used) < 1000 {
			n, ok := b.FindRandom(rng.Uint64(), 0, size)
			if !ok {
				t.Fatal("no free number in an almost empty set")
			}
			b.Set(n)
			used[n] = true
		}
	})
	if allocated > 1000*4*3 { // at most four new nodes a number, each with its slice and its growth
		t.Errorf("%v allocations for 1,000 numbers", allocated)
	}
	for n := range used {
		if !b.Has(n) || !b.Clear(n) {
			t.Fatalf("%d was lost", n)
		}
	}
	if b.SetRange(0, size) != size || b.Free() != 0 || len(b.form.(*tree).root.kids) != 0 {
		t.Errorf("a full set of 2^32 numbers stores %d nodes below its root", len(b.form.(*tree).root.kids))
	}
	b.Clear(1 << 31)
	if n, ok := b.FindRandom(rng.Uint64(), 0, size); !ok || n != 1<<31 {
		t.Errorf("found %d, %v; want the one free number 2^31", n, ok)
	}
}

func TestLowerBand(t *testing.T) {
	// The examples of KEP-3070: /28, /24, /20, /16 (usable addresses), and KEP-3668's default range.
	for _, tc := range []struct{ size, min, max, step, want uint64 }{
		{14, 16, 256, 16, 0},
		{254, 16, 256, 16, 16},
		{4094, 16, 256, 16, 255},
		{65534, 16, 256, 16, 256},
		{2768, 16, 128, 32, 86},
		{16, 16, 128, 32, 0},
	} {
		if got := LowerBand(tc.size, tc.min, tc.max, tc.step); got != tc.want {
			t.Errorf("LowerBand(%d, %d, %d, %d) = %d, want %d", tc.size, tc.min, tc.max, tc.step, got, tc.want)
		}
	}
}

func TestRunsStopsEarly(t *testing.T) {
	b := New(1000)
	for n := uint64(0); n < 1000; n += 2 {
		b.Set(n)
	}
	count := 0
	for range b.Runs() {
		if count++; count == 3 {
			break
		}
	}
	if count != 3 {
		t.Errorf("%d runs after a break at 3", count)
	}
}

func BenchmarkFindSetClear(b *testing.B) {
	for _, bits := range []int{8, 12, 16, 20, 32} {
		for _, left := range []string{"99%", "50%", "1%", "one"} {
			b.Run(fmt.Sprintf("2^%d/%s left", bits, left), func(b *testing.B) {
				size := uint64(1) << bits
				free := map[string]uint64{"99%": size - size/100, "50%": size / 2, "1%": max(size/100, 1), "one": 1}[left]
				set, rng := fill(size, size-free), rand.New(rand.NewPCG(7, 8))
				b.ResetTimer()
				for b.Loop() {
					n, ok := set.FindRandom(rng.Uint64(), 0, size)
					if !ok {
						b.Fatal("none free")
					}
					set.Set(n)
					set.Clear(n)
				}
			})
		}
	}
}

// fill returns a set of the size with that many numbers used: at random up to a
// million, in one run from the start beyond that.
func fill(size, used uint64) *Bitmap {
	set, rng := New(size), rand.New(rand.NewPCG(9, 10))
	if size > 1<<20 {
		set.SetRange(0, used)
		return set
	}
	for set.Used() < used {
		n, _ := set.FindRandom(rng.Uint64(), 0, size)
		set.Set(n)
	}
	return set
}
