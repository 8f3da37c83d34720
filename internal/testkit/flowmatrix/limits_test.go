// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Users are told of the same limits that the packets are held to.
func TestDocumentationListsTheLimits(t *testing.T) {
	text, err := os.ReadFile("../../../docs/modes.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range Rows() {
		names[r.Name] = true
	}
	told := map[string][]string{}
	line := regexp.MustCompile("^\\| `([^`]+)` \\| (\\w+) \\|")
	for l := range strings.Lines(string(text)) {
		if m := line.FindStringSubmatch(l); m != nil {
			told[m[2]] = append(told[m[2]], m[1])
		}
	}
	want := map[string][]string{}
	for _, mode := range slices.Sorted(maps.Keys(limits)) {
		want[mode] = limits[mode].Rows
		for _, row := range limits[mode].Rows {
			if !names[row] {
				t.Errorf("mode %s cannot do %q, which is not in the table", mode, row)
			}
		}
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("docs/modes.md (-want +got):\n%s", diff)
	}
}
