// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/internal/endpointslice"
	"github.com/causeway-lb/causeway/internal/queue"
)

// +kubebuilder:rbac:groups="",resources=endpoints,verbs=list;watch;create;update;delete

// LegacyReconciler keeps the legacy Endpoints object of each Service with a
// selector, of at most 1,000 addresses. It stands by under the same conditions
// as SliceReconciler.
type LegacyReconciler struct {
	Client client.Client
	Mode   Mode // as for slices

	source   *serviceSource
	throttle queue.WriteThrottle
}

func (r *LegacyReconciler) setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		Named("endpoints").
		WatchesRawSource(r.source.on(changeService | changePod | changeNode)).
		WatchesRawSource(source.Kind[client.Object](mgr.GetCache(), &corev1.Endpoints{}, //nolint:staticcheck
			&handler.EnqueueRequestForObject{}, relabelled())).
		WithOptions(controller.Options{MaxConcurrentReconciles: 4, RateLimiter: queue.Retries()}).
		Complete(r)
}

// relabelled admits added, deleted and relabelled objects. Addresses change with every Pod,
// by this reconciler's own writes, and are not watched.
func relabelled() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels())
	}}
}

// Reconcile brings the Endpoints object of one Service up to date.
func (r *LegacyReconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	if wait := r.throttle.Wait(request.NamespacedName, time.Now()); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	result, err := r.reconcile(ctx, request)
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		// The cache lags behind; retry shortly.
		return ctrl.Result{RequeueAfter: 20 * time.Millisecond}, nil
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return ctrl.Result{}, nil
	}
	if err != nil {
		return result, fmt.Errorf("keep Endpoints %s: %w", request.NamespacedName, err)
	}
	return result, nil
}

func (r *LegacyReconciler) reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	existing := &corev1.Endpoints{} //nolint:staticcheck
	if err := r.Client.Get(ctx, request.NamespacedName, existing); apierrors.IsNotFound(err) {
		existing = nil
	} else if err != nil {
		return ctrl.Result{}, err
	}
	view := r.source.index.View(request.NamespacedName)
	if view.Service == nil {
		r.throttle.Forget(request.NamespacedName)
		return ctrl.Result{}, r.deleteOurs(ctx, existing)
	}
	if len(view.Service.Spec.Selector) == 0 || view.Service.Spec.Type == corev1.ServiceTypeExternalName {
		r.throttle.Forget(request.NamespacedName)
		if existing == nil || !leftBehind(view.Service, existing, r.Mode) {
			return ctrl.Result{}, nil
		}
		return ctrl.Result{}, client.IgnoreNotFound(r.Client.Delete(ctx, existing, inThisVersion(existing)))
	}
	if again, standBy := r.standsBy(&view, existing, time.Now()); standBy {
		return ctrl.Result{RequeueAfter: again}, nil
	}
	wanted := endpointslice.ComputeEndpoints(view.Service, view.Pods, existing)
	if wanted == nil {
		return ctrl.Result{}, nil
	}
	r.throttle.Wrote(request.NamespacedName, len(view.Pods), time.Now())
	switch {
	case existing == nil && view.Service.DeletionTimestamp != nil:
		return ctrl.Result{}, nil
	case existing == nil:
		return ctrl.Result{}, r.Client.Create(ctx, wanted)
	}
	return ctrl.Result{}, r.Client.Update(ctx, wanted)
}

// deleteOurs deletes the object of a deleted Service, unless another writer made it.
func (r *LegacyReconciler) deleteOurs(ctx context.Context, existing *corev1.Endpoints) error { //nolint:staticcheck
	if existing == nil || existing.Labels[endpointslice.LegacyManagedByLabel] != endpointslice.LegacyManagedBy {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Delete(ctx, existing, client.Preconditions{UID: &existing.UID}))
}

// leftBehind reports whether an Endpoints object that a controller made from a selector that
// the Service no longer has is to be deleted: no controller would remove Pods from it. Of
// kube-controller-manager's objects that are those that were taken over. An object with
// addresses that a user wrote is the user's.
func leftBehind(service *corev1.Service, existing *corev1.Endpoints, otherwise Mode) bool { //nolint:staticcheck
	if !endpointslice.Generated(existing) || !endpointslice.StandsForPods(existing) {
		return false
	}
	mode, _ := modeOf(service, otherwise)
	return existing.Labels[endpointslice.LegacyManagedByLabel] == endpointslice.LegacyManagedBy || mode == TakeOver
}

// inThisVersion is the precondition that the object has not changed.
func inThisVersion(existing client.Object) client.Preconditions {
	return client.Preconditions{UID: new(existing.GetUID()), ResourceVersion: new(existing.GetResourceVersion())}
}

// standsBy reports whether another controller manages the object, and when to check again
// if that may change without an event.
func (r *LegacyReconciler) standsBy(view *endpointslice.View, existing *corev1.Endpoints, now time.Time) (time.Duration, bool) { //nolint:staticcheck
	mode, _ := modeOf(view.Service, r.Mode) // SliceReconciler reports a wrong one
	switch mode {
	case TakeOver:
		return 0, false
	case HandBack:
		return 0, true
	}
	if existing != nil {
		manager, labelled := existing.Labels[endpointslice.LegacyManagedByLabel]
		other := manager == endpointslice.LegacyKubeManagedBy || !labelled && len(endpointslice.KubeManaged(view.Service, view.Slices)) > 0
		return 0, other
	}
	age := now.Sub(view.Service.CreationTimestamp.Time)
	if r.source.index.KubeManagedSlices() > 0 && age < graceForOther {
		return graceForOther - age, true
	}
	return 0, false
}
