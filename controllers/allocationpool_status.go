// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// statusDelay is how long changes of the book are gathered before the pools'
// status is looked at, so that a thousand Services cost a few writes.
const statusDelay = 500 * time.Millisecond

// pulse turns any number of calls of touch into one event for each pool, within
// statusDelay.
type pulse struct {
	events chan event.GenericEvent
	list   func(context.Context) []client.Object

	touched atomic.Bool
}

func newPulse(list func(context.Context) []client.Object) *pulse {
	return &pulse{events: make(chan event.GenericEvent, 1), list: list}
}

// touch says that something changed. It does not block.
func (p *pulse) touch() { p.touched.Store(true) }

// NeedLeaderElection is true: only the leader writes status.
func (p *pulse) NeedLeaderElection() bool { return true }

// Start sends the events until ctx ends.
func (p *pulse) Start(ctx context.Context) error {
	ticker := time.NewTicker(statusDelay)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if !p.touched.Swap(false) {
			continue
		}
		for _, pool := range p.list(ctx) {
			select {
			case p.events <- event.GenericEvent{Object: pool}:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

// usage writes a pool's counts as its status has them; nil for a pool without
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

// observeUsage sets the metrics of a pool's values of one kind; nil for a pool
// that has none, or is gone.
func observeUsage(pool, kind string, u *v1alpha1.AllocationUsage) {
	if u == nil {
		poolValues.DeletePartialMatch(prometheus.Labels{"pool": pool, "kind": kind})
		return
	}
	for state, n := range map[string]int64{"used": u.Used, "quarantined": u.Quarantined, "excluded": u.Excluded, "free": u.Free} {
		poolValues.WithLabelValues(pool, kind, state).Set(float64(n))
	}
}

// trouble is a condition that is True when there is something to list.
type trouble struct {
	conditionType string
	found         []string
	reason        string // when True
	advice        string // appended when True
	fine          string // reason when False
}

// setConditions writes the troubles and PoolReady into a pool's conditions.
func setConditions(conditions *[]metav1.Condition, generation int64, invalid error, troubles ...trouble) {
	for _, t := range troubles {
		c := metav1.Condition{Type: t.conditionType, Status: metav1.ConditionFalse, Reason: t.fine, ObservedGeneration: generation}
		if len(t.found) > 0 {
			c.Status, c.Reason, c.Message = metav1.ConditionTrue, t.reason, listSome(t.found)+": "+t.advice
		}
		meta.SetStatusCondition(conditions, c)
	}
	ready := metav1.Condition{Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: "Ready", ObservedGeneration: generation}
	if invalid != nil {
		ready.Status, ready.Reason = metav1.ConditionFalse, "Invalid"
		ready.Message = "used as far as it can be read: " + strings.ReplaceAll(invalid.Error(), "\n", "; ")
	}
	meta.SetStatusCondition(conditions, ready)
}

func logListFailure(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		logf.FromContext(ctx).Error(err, "Pools not listed")
	}
}
