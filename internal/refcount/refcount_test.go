// SPDX-License-Identifier: Apache-2.0

package refcount

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"testing"
)

// After random changes of random owners, the edits of the touched keys lead from what
// was found to what the owners want in all.
func TestEditsLeadToWhatIsWanted(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	wanted, found := Map[int, int]{}, map[int]int{}
	owners := make([]map[int]int, 5)
	value := map[int]int{}
	for step := range 2000 {
		touched := map[int]bool{}
		i := rnd.IntN(len(owners))
		wanted.Remove(owners[i], touched)
		owners[i] = map[int]int{}
		for range rnd.IntN(6) {
			key := rnd.IntN(12)
			if wanted[key] == nil {
				value[key] = rnd.IntN(3)
			}
			owners[i][key] = value[key]
		}
		wanted.Add(owners[i], touched)
		last := -1
		for _, e := range Edits(touched, found, wanted.Get, cmp.Compare[int]) {
			if _, had := found[e.Key]; had != e.Had || found[e.Key] != e.Old || e.Key <= last {
				t.Fatalf("step %d: %+v after key %d of %v", step, e, last, found)
			}
			last = e.Key
			delete(found, e.Key)
			if e.Has {
				found[e.Key] = e.New
			}
		}
		all := map[int]int{}
		for _, o := range owners {
			maps.Copy(all, o)
		}
		if !maps.Equal(all, found) || !maps.Equal(all, wanted.Values()) || Differences(all, found) != 0 {
			t.Fatalf("step %d: owners want %v, found %v, counted %v", step, all, found, wanted.Values())
		}
	}
	if n := Differences(map[int]int{1: 1, 2: 2, 3: 3}, map[int]int{2: 2, 3: 4, 5: 5}); n != 3 {
		t.Errorf("%d differences, want 3", n)
	}
}
