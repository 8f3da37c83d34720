// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A list of several parts counts once it is twice the same, without what it has twice;
// one that came whole counts at once.
func TestSettled(t *testing.T) {
	type part struct {
		list  []int
		parts int
	}
	for _, tc := range []struct {
		name  string
		lists []part // the last one again and again
		want  []int
		reads int
	}{
		{"none", []part{{nil, 0}}, nil, 1},
		{"one part", []part{{[]int{1, 2}, 1}}, []int{1, 2}, 1},
		{"two parts", []part{{[]int{1, 2}, 2}}, []int{1, 2}, 2},
		{"one was skipped", []part{{[]int{1}, 2}, {[]int{1, 2}, 2}}, []int{1, 2}, 3},
		{"another was skipped each time", []part{{[]int{1}, 2}, {[]int{2}, 2}, {[]int{1, 2}, 2}}, []int{1, 2}, 4},
		{"one came twice", []part{{[]int{1, 1, 2}, 2}, {[]int{1, 2}, 2}}, []int{1, 2}, 3},
		{"it has shrunk to one part", []part{{[]int{1, 2, 3}, 2}, {[]int{3}, 1}}, []int{3}, 2},
	} {
		reads := 0
		got, err := settled(func() ([]int, int, error) {
			p := tc.lists[min(reads, len(tc.lists)-1)]
			reads++
			return append([]int(nil), p.list...), p.parts, nil
		}, func(i *int) int { return *i })
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil || reads != tc.reads {
			t.Errorf("%s: %v, %d reads instead of %d (-want +got):\n%s", tc.name, err, reads, tc.reads, diff)
		}
	}
	reads := 0
	got, err := settled(func() ([]int, int, error) { reads++; return []int{reads, reads}, 2, nil }, func(i *int) int { return *i })
	if err != nil || len(got) != 1 {
		t.Errorf("a list that never settles: %v, %v; want what was there last, once", got, err)
	}
	if _, err := settled(func() ([]int, int, error) { return nil, 0, errors.ErrUnsupported }, func(i *int) int { return *i }); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("an error: %v", err)
	}
}
