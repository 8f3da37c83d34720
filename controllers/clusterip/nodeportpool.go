// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
	"github.com/causeway-lb/causeway/internal/allocator"
	"github.com/causeway-lb/causeway/internal/queue"
)

// NodePortPoolReconciler keeps the status of NodePortPools.
type NodePortPoolReconciler struct {
	client   client.Client
	state    *allocator.State
	problems *problems
}

func (r *NodePortPoolReconciler) setup(mgr ctrl.Manager, changes *queue.Debouncer) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("nodeportpool").
		For(&v1alpha1.NodePortPool{}).
		WatchesRawSource(changes.Source()).
		Complete(r)
}

// Reconcile looks at one pool.
func (r *NodePortPoolReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.NodePortPool
	if err := r.client.Get(ctx, req.NamespacedName, &pool); err != nil {
		if client.IgnoreNotFound(err) == nil {
			observeUsage(req.Name, "ports", nil)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("get NodePortPool: %w", err)
	}
	before := pool.DeepCopy()
	var known, passing bool
	var overlaps, outside []string
	r.state.With(func(b *book.Book, now time.Time) {
		known = b.KnowsPorts(pool.Name, pool.Generation)
		b.Expire(now)
		stats := b.Ports().Stats(pool.Name)
		pool.Status.Ports, passing = usage(stats), stats.Picked+stats.Resting > 0
		overlaps, outside = b.PortClashes(pool.Name), b.OutsidePorts(pool.Name)
	})
	if !known {
		return reconcile.Result{RequeueAfter: notSeenRecheck}, nil
	}
	observeUsage(pool.Name, "ports", pool.Status.Ports)
	_, bad := alloc.ParsePortRanges("spec.ranges", pool.Spec.Ranges)
	_, worse := alloc.ParsePortRanges("spec.reservedPorts", pool.Spec.ReservedPorts)
	pool.Status.ObservedGeneration = pool.Generation
	setConditions(&pool.Status.Conditions, pool.Generation, errors.Join(bad, worse),
		finding{v1alpha1.PoolOverlapping, overlaps, "Overlapping", "a port can be in one pool only: change one of them", "Apart"},
		finding{v1alpha1.PoolOutsideNodePortRange, outside, "Outside", "the API server refuses these, which are not in its --service-node-port-range as the controller's flag of that name says: take them out, or change the flags of both", "Inside"},
		servicesOutside(r.problems.of(pool.Name, false)),
	)
	if !equality.Semantic.DeepEqual(before.Status, pool.Status) {
		err := r.client.Status().Patch(ctx, &pool, client.MergeFrom(before))
		if client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("write status: %w", err)
		}
	}
	if passing {
		return reconcile.Result{RequeueAfter: passingRecheck}, nil
	}
	return reconcile.Result{}, nil
}
