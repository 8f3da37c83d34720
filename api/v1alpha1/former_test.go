// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRemoveFormer(t *testing.T) {
	conditions := []metav1.Condition{
		{Type: "Overlapping"}, {Type: PoolReady}, {Type: "Exhausted"}, {Type: "OutsideServiceCIDR"}, {Type: "OutsideNodePortRange"},
		{Type: "Strays"}, {Type: "Conflict"}, {Type: PoolDisjoint}, {Type: AddressUncontested},
	}
	RemoveFormer(&conditions)
	if len(conditions) != 3 || conditions[0].Type != PoolReady || conditions[1].Type != PoolDisjoint || conditions[2].Type != AddressUncontested {
		t.Errorf("left are %+v", conditions)
	}
}

func TestContested(t *testing.T) {
	uncontested := func(s metav1.ConditionStatus) metav1.Condition {
		return metav1.Condition{Type: AddressUncontested, Status: s, Message: "current"}
	}
	former := func(s metav1.ConditionStatus) metav1.Condition {
		return metav1.Condition{Type: "Conflict", Status: s, Message: "former"}
	}
	for _, tc := range []struct {
		name       string
		conditions []metav1.Condition
		want       string // message of the condition; "" for none
	}{
		{"none", nil, ""},
		{"a conflict", []metav1.Condition{uncontested(metav1.ConditionFalse)}, "current"},
		{"one that has ended", []metav1.Condition{uncontested(metav1.ConditionTrue)}, ""},
		{"a conflict that a former agent reports", []metav1.Condition{former(metav1.ConditionTrue)}, "former"},
		{"one of a former agent that has ended", []metav1.Condition{former(metav1.ConditionFalse)}, ""},
		{"both", []metav1.Condition{former(metav1.ConditionTrue), uncontested(metav1.ConditionTrue)}, ""},
	} {
		got := ""
		if c := Contested(tc.conditions); c != nil {
			got = c.Message
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
