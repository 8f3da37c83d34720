// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

func TestTableIsLargeAndNamesAreUnique(t *testing.T) {
	seen, flows := map[string]bool{}, 0
	for _, r := range Rows() {
		if seen[r.Name] {
			t.Errorf("two rows %q", r.Name)
		}
		seen[r.Name] = true
		flows += len(r.Families())
	}
	if len(seen) < 120 {
		t.Errorf("%d rows, want at least 120", len(seen))
	}
	t.Logf("%d rows, %d flows", len(seen), flows)
}

func TestRowsOnDesired(t *testing.T) {
	for _, r := range Rows() {
		for _, f := range r.Families() {
			t.Run(r.Name+"/"+f.String(), func(t *testing.T) {
				desired, _ := model.Compute(r.Snapshot(f))
				if diff := cmp.Diff(r.Want.String(), Traced(desired, inspect.Expected(desired, inspect.Mode{Families: model.Families[:]}), r.Packet(f)).String()); diff != "" {
					t.Errorf("the trace ends elsewhere (-want +got):\n%s", diff)
				}
			})
		}
	}
}
