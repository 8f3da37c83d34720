// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
)

func TestRanges(t *testing.T) {
	tests := []struct {
		name string
		keys []uint32
		max  int
		want []Range
	}{
		{name: "none", max: 4},
		{name: "one", keys: []uint32{7}, max: 4, want: []Range{{7, 7}}},
		{name: "neighbours and repeats become one", keys: []uint32{9, 7, 8, 8}, max: 4, want: []Range{{7, 9}}},
		{name: "the whole space", keys: []uint32{0, 1<<32 - 1}, max: 4, want: []Range{{0, 0}, {1<<32 - 1, 1<<32 - 1}}},
		{name: "closest are merged", keys: []uint32{1, 3, 100, 200, 204}, max: 3, want: []Range{{1, 3}, {100, 100}, {200, 204}}},
		{name: "all into one", keys: []uint32{1, 10, 100}, max: 1, want: []Range{{1, 100}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Ranges(tc.keys, tc.max)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSearch runs the compiled program in x/net's BPF machine and compares it
// with the set it was made from.
func TestSearch(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var keys []uint32
		for range rng.IntN(5 * MaxRanges) {
			keys = append(keys, rng.Uint32N(1<<14)<<rng.UintN(18))
		}
		ranges := Ranges(keys, MaxRanges)
		program := append(Search(4, ranges), Search(0, ranges)...)
		program = append(append(program, Search(0, ranges)...), Reject())
		if _, err := bpf.Assemble(program); err != nil || len(program) > 4096 {
			t.Fatalf("seed %d: %d ranges give %d instructions, %v", seed, len(ranges), len(program), err)
		}
		vm, err := bpf.NewVM(program)
		if err != nil {
			t.Fatal(err)
		}
		in := func(k uint32) bool {
			for _, r := range ranges {
				if r.First <= k && k <= r.Last {
					return true
				}
			}
			return false
		}
		try := func(first, second uint32) {
			frame := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, second), first)
			n, err := vm.Run(frame)
			if err != nil {
				t.Fatal(err)
			}
			if want := in(first) || in(second); (n > 0) != want {
				t.Fatalf("seed %d: %d and %d: accepted %v, want %v", seed, first, second, n > 0, want)
			}
		}
		for _, k := range keys {
			if !in(k) {
				t.Fatalf("seed %d: key %d is not covered", seed, k)
			}
			try(k, rng.Uint32())
			try(rng.Uint32(), k)
		}
		for _, r := range ranges {
			try(r.First-1, r.Last+1)
		}
		for range 500 {
			try(rng.Uint32(), rng.Uint32())
		}
	}
}
