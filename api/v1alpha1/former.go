// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Condition types that versions up to 0.1 wrote. What writes the condition that
// replaces one removes it.
const (
	FormerServiceEndpointSlices = "causeway.dev/EndpointSlices"
	FormerNodeProxyMode         = "CausewayProxyMode"

	formerAddressConflict = "Conflict"
)

var formerTypes = []string{
	"Overlapping", "Exhausted", "OutsideServiceCIDR", "OutsideNodePortRange", "Strays", formerAddressConflict,
}

// RemoveFormer removes, from the conditions of an object of this API, those that
// versions up to 0.1 wrote.
func RemoveFormer(conditions *[]metav1.Condition) {
	*conditions = slices.DeleteFunc(*conditions, func(c metav1.Condition) bool { return slices.Contains(formerTypes, c.Type) })
}

// Contested returns the condition that says that another host uses an address, also
// as agents of versions up to 0.1 write it; nil if none does.
func Contested(conditions []metav1.Condition) *metav1.Condition {
	if c := meta.FindStatusCondition(conditions, AddressUncontested); c != nil {
		if c.Status == metav1.ConditionFalse {
			return c
		}
		return nil
	}
	if c := meta.FindStatusCondition(conditions, formerAddressConflict); c != nil && c.Status == metav1.ConditionTrue {
		return c
	}
	return nil
}
