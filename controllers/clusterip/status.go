// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/validate"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/quote"
)

const (
	// passingRecheck is when the status of a pool with pending or quarantined values is
	// computed again: their end causes no event.
	passingRecheck = time.Second
	// notSeenRecheck is when a pool is reconciled again that the allocator has not seen
	// in this version.
	notSeenRecheck = 50 * time.Millisecond
)

// passing returns when the status has to be computed again; 0 for never.
func passing(stats ...alloc.Stats) time.Duration {
	for _, s := range stats {
		if s.Pending+s.Quarantined > 0 {
			return passingRecheck
		}
	}
	return 0
}

// writeStatus patches a pool whose status differs.
func writeStatus(ctx context.Context, c client.Client, before, pool client.Object, was, is any) error {
	if equality.Semantic.DeepEqual(was, is) {
		return nil
	}
	if err := c.Status().Patch(ctx, pool, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// usage returns a pool's counts as its status has them; nil for a pool without
// values of the kind.
func usage(s alloc.Stats) *v1alpha1.AllocationUsage {
	if s.Capacity == 0 {
		return nil
	}
	return &v1alpha1.AllocationUsage{
		Capacity: int64(s.Capacity), Used: int64(s.Held + s.Pending), Quarantined: int64(s.Quarantined),
		Excluded: int64(s.Excluded), Free: int64(s.Free),
	}
}

// finding is a condition that is False when there is something to list.
type finding struct {
	conditionType string
	found         []string
	reason        string // when False
	advice        string // appended when False
	fine          string // reason when True
}

// servicesOutside lists the Services with values that the pool would not give them.
func servicesOutside(found []string) finding {
	return finding{v1alpha1.PoolInPolicy, found, "OutOfPolicy", "see the condition " + v1alpha1.ConditionInPool + " of these Services", "InPolicy"}
}

// setConditions writes the findings and PoolReady into a pool's conditions.
func setConditions(conditions *[]metav1.Condition, generation int64, invalid error, findings ...finding) {
	v1alpha1.RemoveFormer(conditions)
	for _, f := range findings {
		c := metav1.Condition{Type: f.conditionType, Status: metav1.ConditionTrue, Reason: f.fine, ObservedGeneration: generation}
		if len(f.found) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionFalse, f.reason, quote.List(f.found)+": "+f.advice
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
