// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/validate"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/quote"
)

// usage returns a pool's counts as its status has them; nil for a pool without
// values of the kind.
func usage(s alloc.Stats) *v1alpha1.AllocationUsage {
	if s.Capacity == 0 {
		return nil
	}
	return &v1alpha1.AllocationUsage{
		Capacity: int64(s.Capacity), Used: int64(s.Held + s.Picked), Quarantined: int64(s.Resting),
		Excluded: int64(s.Excluded), Free: int64(s.Free),
	}
}

// finding is a condition that is True when there is something to list.
type finding struct {
	conditionType string
	found         []string
	reason        string // when True
	advice        string // appended when True
	fine          string // reason when False
}

// servicesOutside lists the Services that have other values than the pool would
// give them.
func servicesOutside(found []string) finding {
	return finding{v1alpha1.PoolStrays, found, "Strays", "see the condition " + v1alpha1.ConditionInPool + " of these Services", "None"}
}

// setConditions writes the findings and PoolReady into a pool's conditions.
func setConditions(conditions *[]metav1.Condition, generation int64, invalid error, findings ...finding) {
	for _, f := range findings {
		c := metav1.Condition{Type: f.conditionType, Status: metav1.ConditionFalse, Reason: f.fine, ObservedGeneration: generation}
		if len(f.found) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionTrue, f.reason, quote.List(f.found)+": "+f.advice
		}
		meta.SetStatusCondition(conditions, c)
	}
	ready := metav1.Condition{Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: generation}
	if invalid != nil {
		ready.Status, ready.Reason = metav1.ConditionFalse, "Invalid"
		ready.Message = "used as far as it can be read: " + validate.Text(invalid)
	}
	meta.SetStatusCondition(conditions, ready)
}
