// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
)

// rendered returns what the elements of d do.
func rendered(d model.Desired, families ...model.Family) inspect.State {
	all := elements.NewFound[setID](setsOf)
	for _, fam := range families {
		render := newRenderer(fam)
		render.masqueradeAll = d.Node.MasqueradeAll
		emit := func(e element) {
			all.Map[foundID{Family: fam, Set: e.set, Key: e.Key, KeyEnd: e.KeyEnd, End: e.End}] = e.Value
		}
		renderNode(&d.Node, fam, emit)
		for _, svc := range d.Services {
			render.service(svc, emit)
		}
	}
	return decode(all, families)
}

func TestFlowsOnElements(t *testing.T) {
	for _, row := range flowmatrix.Rows() {
		for _, f := range row.Families() {
			t.Run(row.Name+"/"+f.String(), func(t *testing.T) {
				d, _ := model.Compute(row.Snapshot(f))
				got := flowmatrix.Traced(d, rendered(d, f), row.Packet(f))
				if diff := cmp.Diff(row.Want.String(), got.String()); diff != "" {
					t.Errorf("elements lead elsewhere (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func endpoints(n int) []model.Endpoint {
	eps := make([]model.Endpoint, n)
	for i := range eps {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0af40000+uint32(i))
		eps[i] = model.Endpoint{AddrPort: netip.AddrPortFrom(netip.AddrFrom4(a), 8080), Weight: 1}
	}
	return eps
}

func shares(table []int, n int) []int {
	count := make([]int, n)
	for _, i := range table {
		count[i]++
	}
	return count
}

func TestSlotTableIsEven(t *testing.T) {
	for _, n := range []int{1, 2, 3, 63, 64, 65, 100, 250, 1000, 4000} {
		got := shares(slotTable(endpoints(n)), n)
		least, most := slices.Min(got), slices.Max(got)
		if least < 1 || float64(most) > 1.25*float64(least)+0.01 {
			t.Errorf("%d endpoints: shares between %d and %d", n, least, most)
		}
	}
}

func TestSlotTableFollowsWeights(t *testing.T) {
	eps := endpoints(3)
	eps[0].Weight, eps[1].Weight, eps[2].Weight = 1, 2, 5
	table := slotTable(eps)
	got := shares(table, 3)
	for i, w := range []int{1, 2, 5} {
		want := float64(len(table)) * float64(w) / 8
		if diff := float64(got[i]) - want; diff > 1.5 || diff < -1.5 {
			t.Errorf("weight %d has %d of %d slots, want %.1f", w, got[i], len(table), want)
		}
	}
}

// One of n endpoints that goes takes its own slots and few others.
func TestSlotTableChangesLittle(t *testing.T) {
	eps := endpoints(200)
	before := slotTable(eps)
	less := slices.Delete(slices.Clone(eps), 77, 78)
	after := slotTable(less)
	if len(before) != len(after) {
		t.Fatalf("%d slots, then %d", len(before), len(after))
	}
	moved := 0
	for i := range before {
		if eps[before[i]] != less[after[i]] {
			moved++
		}
	}
	if limit := len(before) / 20; moved > limit {
		t.Errorf("%d of %d slots moved, want at most %d", moved, len(before), limit)
	}
}

func TestEndpointNumbersStay(t *testing.T) {
	eps := endpoints(50)
	before := map[netip.AddrPort]uint32{}
	for i, n := range endpointNumbers(eps) {
		before[eps[i].AddrPort] = n
	}
	if len(before) != len(slices.Compact(slices.Sorted(maps.Values(before)))) {
		t.Error("two endpoints have one number")
	}
	less := slices.Delete(slices.Clone(eps), 10, 30)
	for i, n := range endpointNumbers(less) {
		if before[less[i].AddrPort] != n {
			t.Errorf("%s had number %d, has %d", less[i].AddrPort, before[less[i].AddrPort], n)
		}
	}
}
