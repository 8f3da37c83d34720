// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/queue"
)

const (
	// serveBackoffMin and serveBackoffMax bound the time between attempts to
	// serve a Service that a provisioner could not.
	serveBackoffMin = 5 * time.Second
	serveBackoffMax = 5 * time.Minute

	// pendingRetry is when a Service that waits for an address is tried again
	// though nothing is known to have changed.
	pendingRetry = 5 * time.Minute
)

// ServiceReconciler assigns addresses to Services of type LoadBalancer.
// For each Service, in this order:
//
//  1. finalizer and ProvisionerAnnotation, in one write: from here on the
//     Service is not deleted before its addresses are released
//  2. Reserve what its status shows and no Service holds, then Allocate
//  3. Ensure that it is served there
//  4. status.loadBalancer, conditions, events
//
// and in reverse order when it is deleted or no longer of that type. Every step is
// idempotent.
type ServiceReconciler struct {
	Client   client.Client
	Registry *provisioner.Registry
	Index    *pool.Index
	Recorder events.EventRecorder
	// Traffic describes nodes and endpoints to provisioners that need them.
	Traffic TrafficReader
	// MetalLB honours MetalLB's annotations, too; see provisioner.WithMetalLB.
	MetalLB bool

	waiting            *waiting
	remote             sync.Map         // NamespacedName of Services whose provisioner needs nodes -> whether they follow endpoints
	pools              *queue.Debouncer // of the pools whose status is to be computed again
	source             *queue.Source    // feeds the Index
	backoff            workqueue.TypedRateLimiter[types.NamespacedName]
	annotationProblems sync.Map // last reported by reportAnnotations, by Service
}

// TrafficReader answers which nodes may take traffic for a Service.
type TrafficReader interface {
	Nodes(ctx context.Context, svc *corev1.Service) ([]provisioner.Node, error)
}

// +kubebuilder:rbac:groups="",resources=services,verbs=list;watch;patch
// +kubebuilder:rbac:groups="",resources=services/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=namespaces;nodes,verbs=list;watch
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=list;watch
// +kubebuilder:rbac:groups=discovery.k8s.io,resources=endpointslices,verbs=list;watch
// +kubebuilder:rbac:groups=causeway.dev,resources=loadbalanceraddresses,verbs=get;list;watch;create;patch;delete
// +kubebuilder:rbac:groups=causeway.dev,resources=loadbalancerpools,verbs=list;watch;patch
// +kubebuilder:rbac:groups=causeway.dev,resources=loadbalancerpools/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile makes one Service's addresses what it asks for.
func (r *ServiceReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	svc := &corev1.Service{}
	if err := r.Client.Get(ctx, req.NamespacedName, svc); apierrors.IsNotFound(err) {
		return ctrl.Result{}, r.forget(ctx, alloc.Owner{Namespace: req.Namespace, Name: req.Name})
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("get Service: %w", err)
	}
	p, served := r.Registry.For(svc)
	var result ctrl.Result
	var err error
	if served && svc.DeletionTimestamp.IsZero() {
		result, err = r.serve(ctx, svc, p)
	} else {
		err = r.stop(ctx, svc)
	}
	if apierrors.IsConflict(err) {
		log.FromContext(ctx).V(1).Info("Service changed meanwhile", "service", req.String())
		return ctrl.Result{RequeueAfter: 50 * time.Millisecond}, nil
	}
	return result, err
}

// serve assigns a Service its addresses and reports them.
func (r *ServiceReconciler) serve(ctx context.Context, svc *corev1.Service, p provisioner.Provisioner) (ctrl.Result, error) {
	if err := r.begin(ctx, svc, p.Class()); err != nil {
		return ctrl.Result{}, err
	}
	r.reportAnnotations(svc)
	held, err := r.allocate(ctx, svc, p)
	if err != nil {
		return ctrl.Result{}, err
	}
	out := outcome{allocation: held}
	if len(held.Addresses) > 0 {
		out.result, out.err = r.ensure(ctx, svc, p, held.Addresses)
	}
	key := client.ObjectKeyFromObject(svc)
	if err := r.report(ctx, svc, out); err != nil {
		return ctrl.Result{}, err
	}
	again := out.result.RequeueAfter
	if out.err != nil {
		again = r.backoff.When(key)
		log.FromContext(ctx).Error(out.err, "Service is not served", "service", key.String(), "class", p.Class(), "retryAfter", again.String())
	} else {
		r.backoff.Forget(key)
	}
	if held.Unmet == nil {
		r.waiting.remove(key)
		return ctrl.Result{RequeueAfter: again}, nil
	}
	r.waiting.add(key, held.Unmet)
	return ctrl.Result{RequeueAfter: queue.Soonest(again, pendingRetry+rand.N(pendingRetry/10))}, nil
}

// begin marks the Service as served by a class, and ends serving by another class.
func (r *ServiceReconciler) begin(ctx context.Context, svc *corev1.Service, class string) error {
	before := svc.Annotations[v1alpha1.ProvisionerAnnotation]
	if old, ok := r.Registry.Class(before); ok && before != class {
		if err := r.release(ctx, old, alloc.OwnerOf(svc)); err != nil {
			return err
		}
	}
	if before == class && controllerutil.ContainsFinalizer(svc, v1alpha1.LoadBalancerFinalizer) {
		return nil
	}
	base := svc.DeepCopy()
	controllerutil.AddFinalizer(svc, v1alpha1.LoadBalancerFinalizer)
	if svc.Annotations == nil {
		svc.Annotations = map[string]string{}
	}
	svc.Annotations[v1alpha1.ProvisionerAnnotation] = class
	return r.patch(ctx, svc, base)
}

// allocate assigns what the Service requests, as far as possible, and returns what it has
// afterwards.
func (r *ServiceReconciler) allocate(ctx context.Context, svc *corev1.Service, p provisioner.Provisioner) (provisioner.Allocation, error) {
	start := time.Now()
	req, err := r.request(ctx, svc)
	if err == nil {
		err = p.Capabilities().Check(p.Class(), req)
	}
	var unmet *provisioner.AllocationError
	if errors.As(err, &unmet) { // what it has stays as it is
		return provisioner.Allocation{Addresses: req.Current, Unmet: unmet}, nil
	}
	if err != nil {
		return provisioner.Allocation{}, err
	}
	if err := p.Reserve(ctx, req, req.Current); errors.As(err, &unmet) {
		log.FromContext(ctx).Info("Address in status cannot be reserved", "service", req.Owner.String(), "reason", unmet.Message)
	} else if err != nil {
		return provisioner.Allocation{}, err
	}
	held, err := p.Allocate(ctx, req)
	if err == nil {
		r.reportReleased(svc, req, held.Addresses)
	}
	allocateSeconds.Observe(time.Since(start).Seconds())
	return held, err
}

// request reads the Service and its namespace's labels.
func (r *ServiceReconciler) request(ctx context.Context, svc *corev1.Service) (provisioner.Request, error) {
	namespace := &corev1.Namespace{}
	if err := r.Client.Get(ctx, client.ObjectKey{Name: svc.Namespace}, namespace); err != nil {
		return provisioner.Request{}, fmt.Errorf("get Namespace: %w", err)
	}
	if r.MetalLB {
		svc = provisioner.WithMetalLB(svc)
	}
	return provisioner.ParseRequest(svc, namespace.Labels)
}

// ensure has the Service served at its addresses.
func (r *ServiceReconciler) ensure(ctx context.Context, svc *corev1.Service, p provisioner.Provisioner, addrs []netip.Addr) (provisioner.Result, error) {
	want := provisioner.DesiredOf(svc, addrs)
	key := client.ObjectKeyFromObject(svc)
	if !p.Capabilities().NeedsNodes {
		r.remote.Delete(key)
		return p.Ensure(ctx, want)
	}
	r.remote.Store(key, want.LocalPolicy)
	var err error
	if want.Nodes, err = r.Traffic.Nodes(ctx, svc); err != nil {
		return provisioner.Result{}, err
	}
	return p.Ensure(ctx, want)
}

// stop ends what serve began. A finalizer without the annotation belongs to another
// controller.
func (r *ServiceReconciler) stop(ctx context.Context, svc *corev1.Service) error {
	class, ours := svc.Annotations[v1alpha1.ProvisionerAnnotation]
	owner := alloc.OwnerOf(svc)
	held := r.Index.AddressesOf(owner)
	if !ours && len(held) == 0 {
		r.waiting.remove(client.ObjectKeyFromObject(svc))
		return nil
	}
	if err := r.forget(ctx, owner); err != nil {
		return err
	}
	if _, known := r.Registry.Class(class); ours && !known {
		note := fmt.Sprintf("Load balancer class %q, which served the Service, is no longer configured: configure it again, or remove annotation %s and finalizer %s by hand",
			class, v1alpha1.ProvisionerAnnotation, v1alpha1.LoadBalancerFinalizer)
		r.event(svc, corev1.EventTypeWarning, "ClassNotConfigured", "Release", note)
		return fmt.Errorf("release Service %s: %s", owner, note)
	}
	if svc.DeletionTimestamp.IsZero() {
		if err := r.clearStatus(ctx, svc, held); err != nil {
			return err
		}
	}
	if !ours {
		return nil
	}
	base := svc.DeepCopy()
	controllerutil.RemoveFinalizer(svc, v1alpha1.LoadBalancerFinalizer)
	delete(svc.Annotations, v1alpha1.ProvisionerAnnotation)
	return client.IgnoreNotFound(r.patch(ctx, svc, base))
}

// forget releases a Service in every provisioner: the class may have changed while no
// controller watched, and a provisioner that does not know the Service does nothing.
func (r *ServiceReconciler) forget(ctx context.Context, owner alloc.Owner) error {
	key := types.NamespacedName{Namespace: owner.Namespace, Name: owner.Name}
	r.waiting.remove(key)
	r.remote.Delete(key)
	r.backoff.Forget(key)
	r.annotationProblems.Delete(key)
	var errs []error
	for _, class := range r.Registry.Classes() {
		p, _ := r.Registry.Class(class)
		errs = append(errs, r.release(ctx, p, owner))
	}
	return errors.Join(errs...)
}

// release stops serving before it releases, so that no other Service gets an address that
// is still served.
func (r *ServiceReconciler) release(ctx context.Context, p provisioner.Provisioner, owner alloc.Owner) error {
	if err := p.Remove(ctx, owner); err != nil {
		return fmt.Errorf("stop serving %s by class %s: %w", owner, p.Class(), err)
	}
	if err := p.Release(ctx, owner); err != nil {
		return fmt.Errorf("release addresses of %s in class %s: %w", owner, p.Class(), err)
	}
	return nil
}

// patch writes what differs from base, unless base is out of date.
func (r *ServiceReconciler) patch(ctx context.Context, svc, base *corev1.Service) error {
	err := r.Client.Patch(ctx, svc, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("patch Service: %w", err)
	}
	return err
}
