// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/validate"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/queue"
	"github.com/causeway-lb/causeway/internal/quote"
)

// poolStatusDelay gathers changes of a pool's addresses into one status write.
const poolStatusDelay = 200 * time.Millisecond

// PoolReconciler reports pools' counters and conditions, ends quarantines, and keeps a
// deleted pool until its last address is released. It begins when the Index is complete:
// quarantined records of a pool that is not known yet would look like orphans.
type PoolReconciler struct {
	Client client.Client
	Index  *pool.Index
	// Forget deletes the record of an address whose quarantine is over.
	Forget   func(context.Context, pool.Record) error
	Recorder events.EventRecorder
}

// setup adds the reconciler to a manager. indexed is the source that feeds the Index, and
// changed enqueues the pools whose status has to be computed again.
func (r *PoolReconciler) setup(mgr ctrl.Manager, indexed *queue.Source, changed *queue.Debouncer) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("loadbalancerpool").
		For(&v1alpha1.LoadBalancerPool{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(changed.Source()).
		WatchesRawSource(indexed.Barrier()).
		WithOptions(controller.Options{RateLimiter: queue.Retries()}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up controller for LoadBalancerPools: %w", err)
	}
	return nil
}

// Reconcile brings one pool's finalizer, quarantined records and status up to date.
func (r *PoolReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	obj := &v1alpha1.LoadBalancerPool{}
	if err := r.Client.Get(ctx, req.NamespacedName, obj); apierrors.IsNotFound(err) {
		setPoolMetrics(req.Name, nil, nil)
		return ctrl.Result{}, r.expire(ctx, req.Name)
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("get LoadBalancerPool: %w", err)
	}
	if err := r.expire(ctx, req.Name); err != nil {
		return ctrl.Result{}, err
	}
	users, err := r.users(ctx, obj)
	if err != nil {
		return ctrl.Result{}, err
	}
	if done, err := r.finalize(ctx, obj, users); done || err != nil {
		return againAfterConflict(err)
	}
	report, _ := r.Index.Report(req.Name) // a pool that cannot be read has none
	if err := r.report(ctx, obj, report, users); err != nil {
		return againAfterConflict(err)
	}
	setPoolMetrics(req.Name, report.IPv4, report.IPv6)
	if report.NextExpiry.IsZero() {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{RequeueAfter: max(time.Until(report.NextExpiry), 10*time.Millisecond)}, nil
}

// againAfterConflict retries after a conflict: the cache usually lags behind the last write
// of this reconciler, which causes no event.
func againAfterConflict(err error) (ctrl.Result, error) {
	if apierrors.IsConflict(err) {
		return ctrl.Result{RequeueAfter: poolStatusDelay}, nil
	}
	return ctrl.Result{}, client.IgnoreNotFound(err)
}

// expire deletes the records whose quarantine is over, and those that are in no
// pool.
func (r *PoolReconciler) expire(ctx context.Context, name string) error {
	for _, rec := range append(r.Index.Expired(name, time.Now()), r.Index.Orphans()...) {
		if err := r.Forget(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// users returns the Services with addresses of a pool that is being deleted. It reads the
// cache, not the index, which does not have a pool that cannot be read.
func (r *PoolReconciler) users(ctx context.Context, obj *v1alpha1.LoadBalancerPool) ([]string, error) {
	if obj.DeletionTimestamp.IsZero() {
		return nil, nil
	}
	list := &v1alpha1.LoadBalancerAddressList{}
	if err := r.Client.List(ctx, list); err != nil {
		return nil, fmt.Errorf("list LoadBalancerAddresses: %w", err)
	}
	return usersOf(list, obj.Name, nil), nil
}

// usersOf lists "address (Service namespace/name)" for the assigned addresses of a pool
// that match, or all for nil.
func usersOf(list *v1alpha1.LoadBalancerAddressList, poolName string, match func(pool.Record) bool) []string {
	var out []string
	for i := range list.Items {
		rec, err := pool.FromAddress(&list.Items[i])
		if err != nil || rec.Pool != poolName || len(rec.Owners) == 0 || match != nil && !match(rec) {
			continue
		}
		out = append(out, fmt.Sprintf("%s (Service %s)", rec.Address, rec.Owners[0]))
	}
	slices.Sort(out)
	return out
}

// finalize adds or removes the finalizer; done if that deletes the object.
func (r *PoolReconciler) finalize(ctx context.Context, obj *v1alpha1.LoadBalancerPool, users []string) (done bool, err error) {
	base := obj.DeepCopy()
	deleting := !obj.DeletionTimestamp.IsZero()
	changed := false
	if !deleting {
		changed = controllerutil.AddFinalizer(obj, v1alpha1.LoadBalancerPoolFinalizer)
	} else if len(users) == 0 {
		changed = controllerutil.RemoveFinalizer(obj, v1alpha1.LoadBalancerPoolFinalizer)
	}
	if !changed {
		return false, nil
	}
	err = r.Client.Patch(ctx, obj, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	return deleting, err
}

// report writes the status if it differs, and events for changed conditions.
func (r *PoolReconciler) report(ctx context.Context, obj *v1alpha1.LoadBalancerPool, report pool.Report, users []string) error {
	base := obj.DeepCopy()
	obj.Status.ObservedGeneration = obj.Generation
	obj.Status.IPv4, obj.Status.IPv6 = report.IPv4, report.IPv6
	conditions := poolConditions(obj, report, users)
	v1alpha1.RemoveFormer(&obj.Status.Conditions)
	for _, c := range conditions {
		c.ObservedGeneration = obj.Generation
		meta.SetStatusCondition(&obj.Status.Conditions, c)
	}
	if equality.Semantic.DeepEqual(base.Status, obj.Status) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, obj, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return err
	}
	for _, c := range conditions {
		before := meta.FindStatusCondition(base.Status.Conditions, c.Type)
		if before != nil && before.Status == c.Status && before.Reason == c.Reason {
			continue
		}
		switch {
		case c.Status != metav1.ConditionTrue:
			r.Recorder.Eventf(obj, nil, corev1.EventTypeWarning, c.Reason, c.Type, "%s", quote.Note(c.Message))
		case before != nil:
			r.Recorder.Eventf(obj, nil, corev1.EventTypeNormal, c.Reason, c.Type, "%s", quote.Note(c.Message))
		}
	}
	return nil
}

// poolConditions are Ready, Disjoint and Available.
func poolConditions(obj *v1alpha1.LoadBalancerPool, report pool.Report, users []string) []metav1.Condition {
	ready := metav1.Condition{Type: v1alpha1.PoolReady, Status: metav1.ConditionTrue, Reason: "Ready", Message: "Addresses can be given out"}
	_, err := pool.FromPool(obj)
	switch {
	case err != nil:
		ready.Status, ready.Reason = metav1.ConditionFalse, "Invalid"
		ready.Message = "The pool gives out no address until this is put right: " + validate.Text(err)
	case !obj.DeletionTimestamp.IsZero():
		ready.Status, ready.Reason = metav1.ConditionFalse, "Deleting"
		ready.Message = fmt.Sprintf("The pool goes when its last address is released. Held: %s", quote.List(users))
	case obj.Spec.Disabled:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, "Disabled", "spec.disabled is set: what is assigned stays, nothing new is given out"
	}
	disjoint := metav1.Condition{Type: v1alpha1.PoolDisjoint, Status: metav1.ConditionTrue, Reason: "NoOverlap", Message: "All addresses are the pool's own"}
	if len(report.Excluded) > 0 {
		var parts []string
		for _, e := range report.Excluded {
			parts = append(parts, e.String())
		}
		disjoint.Status, disjoint.Reason = metav1.ConditionFalse, "Overlap"
		disjoint.Message = fmt.Sprintf("Not given out: %s. Take these addresses out of spec.addresses", quote.List(parts))
	}
	available := metav1.Condition{Type: v1alpha1.PoolAvailable, Status: metav1.ConditionTrue, Reason: "Free", Message: "There are free addresses"}
	var full []string
	for family, u := range map[string]*v1alpha1.PoolUsage{"IPv4": report.IPv4, "IPv6": report.IPv6} {
		if u != nil && u.Total > 0 && u.Free == 0 {
			full = append(full, family)
		}
	}
	if len(full) > 0 {
		slices.Sort(full)
		available.Status, available.Reason = metav1.ConditionFalse, "NoFreeAddress"
		available.Message = fmt.Sprintf("No %s address is free: add addresses to the pool, or delete Services that no longer need theirs", strings.Join(full, " and no "))
	}
	return []metav1.Condition{ready, disjoint, available}
}
