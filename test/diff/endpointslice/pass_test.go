// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// TestNoPassWritesMore lets both sides make each pass from the same slices, the
// library's. Ours then never takes more writes. Only with topology-mode: Auto
// the two may differ either way, since they choose other endpoints to move
// between zones.
func TestNoPassWritesMore(t *testing.T) {
	fewer, equal := 0, 0
	for i := range *histories / 4 {
		seed := *firstSeed + uint64(i)
		h, limit := newHistory(seed), []int{2, 3, 5, 10, 100}[seed%5]
		they := newTheirs(limit)
		for step := range 30 {
			h.step()
			we := &ours{newStore()}
			for name, slice := range they.slices {
				we.slices[name] = slice.DeepCopy()
				we.slices[name].Labels[discoveryv1.LabelManagedBy] = v1alpha1.EndpointSliceManagedBy
				we.slices[name].Labels[v1alpha1.EndpointSliceKeeperLabel] = v1alpha1.EndpointSliceKeeper
			}
			before := they.writes
			we.pass(t, h, limit)
			they.pass(h)
			theirs := they.writes - before
			switch {
			case endpointslice.TopologyAuto(h.service):
			case we.writes > theirs:
				t.Fatalf("seed %d step %d: %d writes, upstream %d", seed, step, we.writes, theirs)
			case we.writes < theirs:
				fewer++
			default:
				equal++
			}
		}
	}
	t.Logf("%d passes with fewer writes, %d with as many, none with more", fewer, equal)
	if fewer == 0 {
		t.Error("no pass differs: the comparison is broken")
	}
}
