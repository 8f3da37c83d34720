// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestPacking begins with slices of given sizes, lets Pods go and come, and
// looks at the slices and at the number of writes.
func TestPacking(t *testing.T) {
	tests := []struct {
		name    string
		sizes   []int // of the slices at first, at most 10 each
		gone    []int // how many endpoints each of them loses
		touched []int // how many endpoints of each change in place
		come    int
		compact bool
		want    []int
		writes  int
	}{
		{name: "first endpoint", come: 1, want: []int{1}, writes: 1},
		{name: "first 25", come: 25, want: []int{10, 10, 5}, writes: 3},
		{name: "nothing", sizes: []int{10, 4}, want: []int{10, 4}},
		{name: "one comes: where it leaves the least room", sizes: []int{10, 8, 4}, come: 1, want: []int{10, 9, 4}, writes: 1},
		{name: "three come: where all three fit", sizes: []int{10, 8, 4}, come: 3, want: []int{10, 8, 7}, writes: 1},
		{name: "seven come: nowhere do they fit", sizes: []int{10, 8, 4}, come: 7, want: []int{10, 8, 7, 4}, writes: 1},
		{name: "twelve come: a full slice, and the rest where it fits", sizes: []int{10, 8}, come: 12, want: []int{10, 10, 10}, writes: 2},
		{name: "one goes, one comes: in its place", sizes: []int{10, 5}, gone: []int{1, 0}, come: 1, want: []int{10, 5}, writes: 1},
		{name: "rolling: into what is written anyway", sizes: []int{10, 10}, gone: []int{3, 2}, come: 5, want: []int{10, 10}, writes: 2},
		{name: "a slice empties", sizes: []int{10, 2}, gone: []int{0, 2}, want: []int{10}, writes: 1},
		{name: "a slice empties while others come: it is reused", sizes: []int{10, 2}, gone: []int{0, 2}, come: 3, want: []int{10, 3}, writes: 1},
		{name: "all go: one empty slice is left", sizes: []int{10, 2}, gone: []int{10, 2}, want: []int{0}, writes: 2},
		{name: "merge: what is written anyway and fits together", sizes: []int{10, 10, 10}, gone: []int{6, 6, 0}, want: []int{10, 8}, writes: 2},
		{name: "merge: three into one", sizes: []int{10, 10, 10}, gone: []int{7, 7, 7}, want: []int{9}, writes: 3},
		{name: "merge: a change in place counts as written", sizes: []int{4, 4}, touched: []int{1, 1}, want: []int{8}, writes: 2},
		{name: "no merge with what is not written", sizes: []int{4, 4}, gone: []int{1, 0}, want: []int{4, 3}, writes: 1},
		{name: "no merge that does not fit", sizes: []int{10, 10}, gone: []int{3, 3}, want: []int{7, 7}, writes: 2},
		{name: "compaction on demand", sizes: []int{2, 2, 2, 2}, compact: true, want: []int{8}, writes: 4},
		{name: "compaction splits a slice over others", sizes: []int{8, 8, 3}, compact: true, want: []int{10, 9}, writes: 3},
		{name: "compaction of what is compact", sizes: []int{10, 10, 1}, compact: true, want: []int{10, 10, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service := testService()
			service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
			list, pods := slicesOfSizes(t, service, test.sizes, test.gone, test.touched)
			for n := range test.come {
				pods = append(pods, testPod(1000+n))
			}
			in := Input{Service: service, Pods: pods, Slices: list, Nodes: testNodes, MaxEndpoints: 10, Compact: test.compact}
			plan := Compute(in)
			list = apply(t, list, plan)
			diff(t, "sizes", test.want, sizes(list, discoveryv1.AddressTypeIPv4))
			if plan.Writes() != test.writes {
				t.Errorf("%d writes, want %d", plan.Writes(), test.writes)
			}
			endpointsByName(t, list, discoveryv1.AddressTypeIPv4)
		})
	}
}

// slicesOfSizes returns slices of the given sizes, and the Pods that are left
// after some have gone and some have changed.
func slicesOfSizes(t *testing.T, service *corev1.Service, sizes, gone, touched []int) ([]*discoveryv1.EndpointSlice, []*corev1.Pod) {
	t.Helper()
	var list []*discoveryv1.EndpointSlice
	var pods []*corev1.Pod
	next := 0
	for i, size := range sizes {
		var mine []*corev1.Pod
		for range size {
			mine = append(mine, testPod(next))
			next++
		}
		plan := Compute(Input{Service: service, Pods: mine, Nodes: testNodes, MaxEndpoints: 10})
		slice := plan.Create[0]
		slice.Name, slice.ResourceVersion = fmt.Sprintf("web-%d", i), "1"
		list = append(list, slice)
		if gone != nil {
			mine = mine[gone[i]:]
		}
		if touched != nil {
			for _, pod := range mine[:touched[i]] {
				setReady(pod, false)
			}
		}
		pods = append(pods, mine...)
	}
	return list, pods
}

func TestPortsChangeInPlace(t *testing.T) {
	service := testService()
	list, _ := computeOne(t, service, testPods(150)...)
	service.Spec.Ports[0].Name = "web"
	plan := Compute(Input{Service: service, Pods: testPods(150), Slices: list, Nodes: testNodes})
	if len(plan.Update) != 2 || plan.Writes() != 2 {
		t.Errorf("another port name takes %d writes, want two updates", plan.Writes())
	}
}

func TestSparse(t *testing.T) {
	for _, test := range []struct {
		slices, needed int
		want           bool
	}{{1, 1, false}, {2, 1, true}, {3, 2, false}, {4, 2, true}, {50, 26, false}} {
		if got := (&Plan{Slices: test.slices, Needed: test.needed}).Sparse(); got != test.want {
			t.Errorf("%d slices, %d needed: sparse %t", test.slices, test.needed, got)
		}
	}
}
