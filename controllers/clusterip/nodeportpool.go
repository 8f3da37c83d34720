// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"errors"
	"fmt"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
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

// Reconcile reconciles one pool.
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
	var known bool
	var ports services.PoolState
	r.state.With(func(a *services.Allocations, now time.Time) {
		known, ports = a.KnowsNodePortPool(pool.Name, pool.Generation), a.NodePortPool(pool.Name, now)
	})
	if !known {
		return reconcile.Result{RequeueAfter: notSeenRecheck}, nil
	}
	pool.Status.Ports = usage(ports.Stats)
	observeUsage(pool.Name, "ports", pool.Status.Ports)
	_, bad := alloc.ParsePortRanges("spec.ranges", pool.Spec.Ranges)
	_, worse := alloc.ParsePortRanges("spec.reservedPorts", pool.Spec.ReservedPorts)
	pool.Status.ObservedGeneration = pool.Generation
	setConditions(&pool.Status.Conditions, pool.Generation, errors.Join(bad, worse),
		finding{v1alpha1.PoolDisjoint, ports.Overlaps, "Overlap", "a port can be in one pool only: change one of them", "NoOverlap"},
		finding{v1alpha1.PoolInNodePortRange, ports.Outside, "Outside", "the API server refuses these, which are not in its --service-node-port-range as the controller's flag of that name says: take them out, or change the flags of both", "Inside"},
		servicesOutside(r.problems.of(pool.Name, false)),
	)
	return reconcile.Result{RequeueAfter: passing(ports.Stats)}, writeStatus(ctx, r.client, before, &pool, before.Status, pool.Status)
}
