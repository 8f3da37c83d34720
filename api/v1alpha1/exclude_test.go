// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "testing"

func TestExcludedByLabel(t *testing.T) {
	for _, tc := range []struct {
		value string
		want  bool
	}{
		{"", true}, {"true", true}, {"1", true}, {"t", true}, {"TRUE", true}, {"yes", true}, {"no", true}, {"fAlSe", true},
		{"false", false}, {"0", false}, {"F", false}, {"f", false}, {"False", false}, {"FALSE", false},
	} {
		if got := ExcludedByLabel(map[string]string{excludeLabel: tc.value}); got != tc.want {
			t.Errorf("%q excludes: %v, want %v", tc.value, got, tc.want)
		}
	}
	if ExcludedByLabel(map[string]string{"node.kubernetes.io/exclude": "true"}) {
		t.Error("excluded without the label")
	}
}
