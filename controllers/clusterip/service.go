// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/allocator"
	"github.com/causeway-lb/causeway/internal/queue"
	"github.com/causeway-lb/causeway/internal/quote"
)

const (
	// workers is how many Services are reconciled in parallel. Most of a
	// reconciliation is waiting for the API server.
	workers = 8
	// retryDenied is when a Service that was denied an address asks again.
	retryDenied = 10 * time.Second
)

// ServiceReconciler reports Services whose values the pools would not give them, and
// allocates addresses and ports to Services that the API server stored without.
type ServiceReconciler struct {
	Client    client.Client
	Recorder  events.EventRecorder
	Allocator *allocator.Allocator

	problems *problems
}

// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=namespaces;nodes,verbs=list;watch
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=list;watch;create;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=ipaddresses,verbs=get;list;watch;create;delete
// +kubebuilder:rbac:groups=causeway.dev,resources=clusterippools;nodeportpools;loadbalancerpools,verbs=list;watch
// +kubebuilder:rbac:groups=causeway.dev,resources=clusterippools/status;nodeportpools/status,verbs=patch
// +kubebuilder:rbac:groups=causeway.dev,resources=clusterippools/finalizers,verbs=update
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// setup adds the reconciler to a manager. changedServices are those that a change of
// pools concerns or that share a value, once the allocator knows, which may be later
// than the watches here.
func (r *ServiceReconciler) setup(mgr ctrl.Manager, changedServices *queue.Debouncer) error {
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		return queue.List(ctx, r.Client, &corev1.ServiceList{})
	})
	inNamespace := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, ns client.Object) []reconcile.Request {
		return queue.List(ctx, r.Client, &corev1.ServiceList{}, client.InNamespace(ns.GetName()))
	})
	changed := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	return ctrl.NewControllerManagedBy(mgr).
		Named("serviceaddress").
		For(&corev1.Service{}).
		Watches(&v1alpha1.ClusterIPPool{}, all, changed).
		Watches(&v1alpha1.NodePortPool{}, all, changed).
		WatchesRawSource(changedServices.Source()).
		Watches(&corev1.Namespace{}, inNamespace, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

// Reconcile reconciles one Service.
func (r *ServiceReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var svc corev1.Service
	if err := r.Client.Get(ctx, req.NamespacedName, &svc); err != nil {
		if client.IgnoreNotFound(err) == nil {
			r.problems.set(req.NamespacedName, nil)
			return reconcile.Result{}, nil
		}
		return reconcile.Result{}, fmt.Errorf("get Service: %w", err)
	}
	if !svc.DeletionTimestamp.IsZero() {
		return reconcile.Result{}, nil
	}
	if services.Lacks(&svc) {
		return r.allocate(ctx, &svc)
	}
	found, err := r.Allocator.Check(ctx, &svc)
	if err != nil {
		return reconcile.Result{}, err
	}
	r.problems.set(req.NamespacedName, found)
	return reconcile.Result{}, r.report(ctx, &svc, inPool(found))
}

// inPool returns the condition for the problems; nil for none.
func inPool(found []services.Problem) *metav1.Condition {
	if len(found) == 0 {
		return nil
	}
	var messages []string
	for _, p := range found {
		messages = append(messages, p.Message)
	}
	return &metav1.Condition{
		Type: v1alpha1.ConditionInPool, Status: metav1.ConditionFalse, Reason: found[0].Reason, Message: quote.List(messages),
	}
}

// report writes the condition, or removes it, and records an event for a change. A Service
// without problems costs no write.
func (r *ServiceReconciler) report(ctx context.Context, svc *corev1.Service, want *metav1.Condition) error {
	before := svc.DeepCopy()
	if want == nil {
		if !meta.RemoveStatusCondition(&svc.Status.Conditions, v1alpha1.ConditionInPool) {
			return nil
		}
	} else if !meta.SetStatusCondition(&svc.Status.Conditions, *want) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, svc, client.StrategicMergeFrom(before)); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("write condition %s: %w", v1alpha1.ConditionInPool, err))
	}
	if want != nil {
		r.Recorder.Eventf(svc, nil, corev1.EventTypeWarning, want.Reason, "Allocate", "%s", want.Message)
	}
	return nil
}

// allocate gives a Service what it lacks, as the webhook does, for API servers that do not
// allocate themselves.
func (r *ServiceReconciler) allocate(ctx context.Context, svc *corev1.Service) (reconcile.Result, error) {
	grant, err := r.Allocator.Grant(ctx, allocator.Request{Service: svc, UID: string(uuid.NewUUID())})
	if denied, ok := errors.AsType[*services.Denied](err); ok {
		err := r.report(ctx, svc, &metav1.Condition{
			Type: v1alpha1.ConditionInPool, Status: metav1.ConditionFalse, Reason: "Pending", Message: denied.Error(),
		})
		return reconcile.Result{RequeueAfter: retryDenied}, err
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("allocate: %w", err)
	}
	operations := allocator.Patch(grant)
	if len(operations) == 0 {
		return reconcile.Result{}, nil // no pool, nothing to give
	}
	// The API server rejects the patch if the Service has changed: its ports may be in
	// another order, or it may have got what it lacked.
	unchanged := jsonpatch.NewOperation("test", "/metadata/resourceVersion", svc.ResourceVersion)
	patch, err := json.Marshal(append([]jsonpatch.Operation{unchanged}, operations...))
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("write grant: %w", err)
	}
	if err := r.Client.Patch(ctx, svc, client.RawPatch(types.JSONPatchType, patch)); err != nil {
		return reconcile.Result{}, fmt.Errorf("write addresses and ports: %w", err)
	}
	return reconcile.Result{}, r.report(ctx, svc, nil)
}
