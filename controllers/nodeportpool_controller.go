// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/book"
)

// NodePortPoolReconciler keeps the status of NodePortPools.
type NodePortPoolReconciler struct {
	Client client.Client

	book     *serviceBook
	problems *problems
	pulse    *pulse
}

// SetupWithManager adds the reconciler to a manager.
func (r *NodePortPoolReconciler) SetupWithManager(mgr ctrl.Manager) error {
	if err := mgr.Add(r.pulse); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("nodeportpool").
		For(&v1alpha1.NodePortPool{}).
		WatchesRawSource(source.Channel(r.pulse.events, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// listNodePortPools lists what the pulse is to touch.
func listNodePortPools(c client.Reader) func(context.Context) []client.Object {
	return func(ctx context.Context) (out []client.Object) {
		var list v1alpha1.NodePortPoolList
		logListFailure(ctx, c.List(ctx, &list))
		for i := range list.Items {
			out = append(out, &list.Items[i])
		}
		return out
	}
}

// Reconcile looks at one pool.
func (r *NodePortPoolReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pool v1alpha1.NodePortPool
	if err := r.Client.Get(ctx, req.NamespacedName, &pool); err != nil {
		if client.IgnoreNotFound(err) == nil {
			observeUsage(req.Name, "ports", nil)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("get NodePortPool: %w", err)
	}
	before := pool.DeepCopy()
	var known, passing bool
	var clashes, outside []string
	r.book.with(func(b *book.Book) {
		known = b.KnowsPorts(pool.Name, pool.Generation)
		b.Expire(r.book.now())
		stats := b.Ports().Stats(pool.Name)
		pool.Status.Ports, passing = usage(stats), stats.Picked+stats.Resting > 0
		clashes, outside = b.PortClashes(pool.Name), b.OutsidePorts(pool.Name)
	})
	if !known {
		return reconcile.Result{RequeueAfter: notSeenRecheck}, nil
	}
	observeUsage(pool.Name, "ports", pool.Status.Ports)
	_, bad := alloc.ParsePortRanges("spec.ranges", pool.Spec.Ranges)
	_, worse := alloc.ParsePortRanges("spec.reservedPorts", pool.Spec.ReservedPorts)
	pool.Status.ObservedGeneration = pool.Generation
	setConditions(&pool.Status.Conditions, pool.Generation, errors.Join(bad, worse),
		trouble{v1alpha1.PoolOverlapping, clashes, "Overlapping", "a port can be in one pool only: change one of them", "Apart"},
		trouble{v1alpha1.PoolOutsideNodePortRange, outside, "Outside", "the API server refuses these, which are not in its --service-node-port-range as the controller's flag of that name says: take them out, or change the flags of both", "Inside"},
		trouble{v1alpha1.PoolStrays, r.problems.strays(pool.Name, false), "Strays", "see the condition " + v1alpha1.ConditionInPool + " of these Services", "None"},
	)
	if !equality.Semantic.DeepEqual(before.Status, pool.Status) {
		err := r.Client.Status().Patch(ctx, &pool, client.MergeFrom(before))
		if client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("write status: %w", err)
		}
	}
	if passing {
		return reconcile.Result{RequeueAfter: passingRecheck}, nil
	}
	return reconcile.Result{}, nil
}
