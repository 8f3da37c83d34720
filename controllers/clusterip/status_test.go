// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

func TestConditionsReplaceFormerConditions(t *testing.T) {
	conditions := []metav1.Condition{
		{Type: "Overlapping", Status: metav1.ConditionTrue}, {Type: "Strays", Status: metav1.ConditionFalse},
		{Type: "OutsideServiceCIDR", Status: metav1.ConditionFalse}, {Type: "OutsideNodePortRange", Status: metav1.ConditionFalse},
	}
	setConditions(&conditions, 1, nil,
		finding{v1alpha1.PoolDisjoint, []string{"10.96.0.1 is node-1's"}, "Overlap", "change it", "NoOverlap"}, servicesOutside(nil))
	got := map[string]string{}
	for _, c := range conditions {
		got[c.Type] = string(c.Status) + "/" + c.Reason
	}
	if len(got) != 3 || got[v1alpha1.PoolDisjoint] != "False/Overlap" || got[v1alpha1.PoolInPolicy] != "True/InPolicy" || got[v1alpha1.PoolReady] != "True/Ready" {
		t.Errorf("conditions %v", got)
	}
}
