// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc/book"
)

const (
	// recheck is when a Service is looked at again whose trouble depends on
	// another Service.
	recheck = 5 * time.Second
	// retryRefused is when a Service that was refused an address asks again.
	retryRefused = 10 * time.Second
)

// ServiceAddressReconciler compares what each Service has with what the pools
// would give it and says so, and gives addresses and ports to Services that the
// API server stored without.
type ServiceAddressReconciler struct {
	Client   client.Client
	Recorder events.EventRecorder

	allocator *ServiceAllocator
	problems  *problems
	pools     *pulse // one event for any changes of pools
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

// SetupWithManager adds the reconciler to a manager.
func (r *ServiceAddressReconciler) SetupWithManager(mgr ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		return r.services(ctx)
	})
	inNamespace := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, ns client.Object) []reconcile.Request {
		return r.services(ctx, client.InNamespace(ns.GetName()))
	})
	changed := builder.WithPredicates(predicate.GenerationChangedPredicate{})
	if err := mgr.Add(r.pools); err != nil {
		return err
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("serviceaddress").
		For(&corev1.Service{}).
		Watches(&v1alpha1.ClusterIPPool{}, all, changed).
		Watches(&v1alpha1.NodePortPool{}, all, changed).
		// Once more when the book knows the pools, which may be later.
		WatchesRawSource(source.Channel(r.pools.events, all)).
		Watches(&corev1.Namespace{}, inNamespace, builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(r)
}

func (r *ServiceAddressReconciler) services(ctx context.Context, opts ...client.ListOption) []reconcile.Request {
	var list corev1.ServiceList
	if err := r.Client.List(ctx, &list, append(opts, client.UnsafeDisableDeepCopy)...); err != nil {
		logf.FromContext(ctx).Error(err, "Services not listed")
		return nil
	}
	out := make([]reconcile.Request, len(list.Items))
	for i := range list.Items {
		out[i].NamespacedName = client.ObjectKeyFromObject(&list.Items[i])
	}
	return out
}

// Reconcile looks at one Service.
func (r *ServiceAddressReconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
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
	namespace, err := r.allocator.namespaceLabels(ctx, svc.Namespace)
	if err != nil {
		return reconcile.Result{}, err
	}
	if book.Lacks(&svc) {
		return r.allocate(ctx, &svc)
	}
	var found []book.Problem
	r.allocator.book.with(func(b *book.Book) { found = b.Check(&svc, namespace) })
	r.problems.set(req.NamespacedName, found)
	if err := r.report(ctx, &svc, inPool(found)); err != nil {
		return reconcile.Result{}, err
	}
	if slices.ContainsFunc(found, func(p book.Problem) bool { return p.Reason == book.Duplicate }) {
		return reconcile.Result{RequeueAfter: recheck}, nil
	}
	return reconcile.Result{}, nil
}

// inPool is the condition that the problems make; nil for none.
func inPool(found []book.Problem) *metav1.Condition {
	if len(found) == 0 {
		return nil
	}
	var messages []string
	for _, p := range found {
		messages = append(messages, p.Message)
	}
	return &metav1.Condition{
		Type: v1alpha1.ConditionInPool, Status: metav1.ConditionFalse,
		Reason: found[0].Reason, Message: listSome(messages),
	}
}

// report writes the condition, or removes it, and tells the user of a change. A
// Service without problems costs no write.
func (r *ServiceAddressReconciler) report(ctx context.Context, svc *corev1.Service, want *metav1.Condition) error {
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

// allocate gives a Service what it lacks, by the same way as the webhook. That
// happens where the API server does not allocate by itself.
func (r *ServiceAddressReconciler) allocate(ctx context.Context, svc *corev1.Service) (reconcile.Result, error) {
	raw, err := json.Marshal(svc)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("write Service: %w", err)
	}
	req := admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		UID: uuid.NewUUID(), Operation: admissionv1.Create, Namespace: svc.Namespace, Name: svc.Name,
		Object: runtime.RawExtension{Raw: raw},
	}}
	response := r.allocator.Handle(ctx, req)
	if err := response.Complete(req); err != nil {
		return reconcile.Result{}, fmt.Errorf("complete allocation: %w", err)
	}
	switch {
	case len(response.Warnings) > 0:
		return reconcile.Result{}, fmt.Errorf("allocate: %s", strings.Join(response.Warnings, "; "))
	case !response.Allowed:
		err := r.report(ctx, svc, &metav1.Condition{
			Type: v1alpha1.ConditionInPool, Status: metav1.ConditionFalse, Reason: "Pending", Message: response.Result.Message,
		})
		return reconcile.Result{RequeueAfter: retryRefused}, err
	case len(response.Patch) == 0:
		return reconcile.Result{}, nil // no pool, nothing to give
	}
	patch, err := onlyIfUnchanged(svc, response.Patch)
	if err != nil {
		return reconcile.Result{}, err
	}
	if err := r.Client.Patch(ctx, svc, patch); err != nil {
		return reconcile.Result{}, fmt.Errorf("write addresses and ports: %w", err)
	}
	return reconcile.Result{}, r.report(ctx, svc, nil)
}

// onlyIfUnchanged returns a JSON patch that the API server refuses when the
// Service is no longer what it was made for: its ports may have moved, or it may
// have been given what it lacked.
func onlyIfUnchanged(svc *corev1.Service, patch []byte) (client.Patch, error) {
	var operations []jsonpatch.Operation
	if err := json.Unmarshal(patch, &operations); err != nil {
		return nil, fmt.Errorf("read grant: %w", err)
	}
	test := jsonpatch.NewOperation("test", "/metadata/resourceVersion", svc.ResourceVersion)
	out, err := json.Marshal(append([]jsonpatch.Operation{test}, operations...))
	if err != nil {
		return nil, fmt.Errorf("write grant: %w", err)
	}
	return client.RawPatch(types.JSONPatchType, out), nil
}

// problems are those of all Services, for the pools' status and the metrics.
// Safe for concurrent use.
type problems struct {
	mu      sync.Mutex
	all     map[types.NamespacedName][]book.Problem
	changed func()
}

func newProblems() *problems {
	return &problems{all: map[types.NamespacedName][]book.Problem{}, changed: func() {}}
}

func (p *problems) set(key types.NamespacedName, found []book.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.all[key]
	if len(before) == 0 && len(found) == 0 {
		return
	}
	if len(before) > 0 {
		serviceProblems.WithLabelValues(before[0].Reason).Dec()
	}
	delete(p.all, key)
	if len(found) > 0 {
		serviceProblems.WithLabelValues(found[0].Reason).Inc()
		p.all[key] = found
	}
	p.changed()
}

// strays returns the Services with a problem that concerns a pool, in order.
func (p *problems) strays(pool string, addressPool bool) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for key, found := range p.all {
		if slices.ContainsFunc(found, func(q book.Problem) bool {
			return q.AddressPools == addressPool && slices.Contains(q.Pools, pool)
		}) {
			out = append(out, key.String())
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
