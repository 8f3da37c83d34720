// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/queue"
)

// workers is how many Services are reconciled in parallel. Most of a
// reconciliation is waiting for the API server.
const workers = 8

// Options are the operator's choices about LoadBalancer addresses.
type Options struct {
	// Default serves also Services of type LoadBalancer without a class.
	Default bool
	// External is a file that describes load balancers outside the cluster, each with
	// its class. Empty means none.
	External string
	// Forwarder is what forwards packets for LoadBalancer addresses on the nodes:
	// ForwarderCauseway, which empty means too, or ForwarderKubeProxy.
	Forwarder string
	// IgnoreExcludeLabel has load balancers outside the cluster send also to nodes with
	// the label node.kubernetes.io/exclude-from-external-load-balancers.
	IgnoreExcludeLabel bool
	// MetalLBAnnotations honours MetalLB's annotations on Services, too.
	MetalLBAnnotations bool
}

// What forwards on the nodes.
const (
	ForwarderCauseway  = "causeway"
	ForwarderKubeProxy = "kube-proxy"
)

// SetupWithManager adds the reconcilers and the webhook of LoadBalancer addresses. One
// index is fed by the Service controller's source and read by both controllers.
func SetupWithManager(mgr ctrl.Manager, opts Options) error {
	if err := queue.RegisterMetrics(allocateSeconds, allocateLost, pendingServices, poolAddresses); err != nil {
		return err
	}
	index := pool.NewIndex()
	config := pool.Config{
		Index:   index,
		Records: pool.API{Writer: mgr.GetClient(), Reader: mgr.GetAPIReader()},
		Ports:   cached(mgr.GetClient(), portsOf),
		Lost:    allocateLost.Inc,
	}
	switch opts.Forwarder {
	case "", ForwarderCauseway:
	case ForwarderKubeProxy:
		config.LocalPods = cached(mgr.GetClient(), provisioner.LocalPods)
	default:
		return fmt.Errorf("unknown forwarder %q: choose %s or %s", opts.Forwarder, ForwarderCauseway, ForwarderKubeProxy)
	}
	pools, err := pool.New(config)
	if err != nil {
		return err
	}
	defaultClass := ""
	if opts.Default {
		defaultClass = pools.Class()
	}
	external, err := externalProvisioners(mgr, opts.External)
	if err != nil {
		return err
	}
	registry, err := provisioner.NewRegistry(defaultClass, append(external, pools)...)
	if err != nil {
		return err
	}
	changed, indexed := queue.NewDebouncer(poolStatusDelay, nil), queue.NewSource(mgr.GetCache())
	r := &ServiceReconciler{
		Client: mgr.GetClient(), Registry: registry, Index: index,
		Recorder: mgr.GetEventRecorder("causeway-controller"),
		Traffic:  CachedTraffic{mgr.GetClient(), opts.IgnoreExcludeLabel},
		MetalLB:  opts.MetalLBAnnotations,
		waiting:  newWaiting(), pools: changed, source: indexed, backoff: serveBackoff(),
	}
	p := &PoolReconciler{Client: mgr.GetClient(), Index: index, Forget: pools.Forget, Recorder: mgr.GetEventRecorder("causeway-controller")}
	return errors.Join(p.setup(mgr, indexed, changed), poolWebhook(mgr.GetClient()).Setup(mgr, &v1alpha1.LoadBalancerPool{}), r.setup(mgr))
}

// cached returns a function that reads a Service from the cache; it returns the zero value
// for an unknown one.
func cached[T any](c client.Reader, of func(*corev1.Service) T) func(alloc.Owner) T {
	return func(o alloc.Owner) (out T) {
		svc := &corev1.Service{}
		if err := c.Get(context.Background(), client.ObjectKey{Namespace: o.Namespace, Name: o.Name}, svc); err == nil {
			out = of(svc)
		}
		return out
	}
}

func portsOf(svc *corev1.Service) (ports []provisioner.Port) {
	for _, p := range provisioner.DesiredOf(svc, nil).Ports {
		ports = append(ports, p.Port)
	}
	return ports
}

// serveBackoff returns when to retry a Service that could not be served.
func serveBackoff() workqueue.TypedRateLimiter[types.NamespacedName] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](serveBackoffMin, serveBackoffMax)
}

// setup adds the reconciler to a manager. Its source feeds the index:
// controller-runtime starts the workers after every watch has seen the initial
// lists, so that nothing is allocated before the index is complete.
func (r *ServiceReconciler) setup(mgr ctrl.Manager) error {
	if r.needsNodes() {
		if err := IndexSlices(mgr); err != nil {
			return err
		}
	}
	r.source.Watch(r.watches(log.IntoContext(context.Background(), mgr.GetLogger()))...)
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](200*time.Millisecond, serveBackoffMax)
	err := ctrl.NewControllerManagedBy(mgr).
		Named("loadbalancer").
		For(&corev1.Service{}, builder.WithPredicates(servicePredicate())).
		WatchesRawSource(r.source.For(everyChange, nil)).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, RateLimiter: limiter}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("set up controller for LoadBalancer Services: %w", err)
	}
	return nil
}

// needsNodes reports whether any provisioner is told about nodes.
func (r *ServiceReconciler) needsNodes() bool {
	return slices.ContainsFunc(r.Registry.Classes(), func(class string) bool {
		p, _ := r.Registry.Class(class)
		return p.Capabilities().NeedsNodes
	})
}

// servicePredicate admits Services that are, or were, of type LoadBalancer, if something
// relevant has changed.
func servicePredicate() predicate.Predicate {
	concerns := func(o client.Object) bool {
		svc, ok := o.(*corev1.Service)
		if !ok {
			return false
		}
		_, ours := svc.Annotations[v1alpha1.ProvisionerAnnotation]
		return ours || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
	}
	return predicate.Funcs{
		CreateFunc: func(e event.CreateEvent) bool { return concerns(e.Object) },
		DeleteFunc: func(e event.DeleteEvent) bool { return concerns(e.Object) },
		UpdateFunc: func(e event.UpdateEvent) bool {
			before, ok := e.ObjectOld.(*corev1.Service)
			now, ok2 := e.ObjectNew.(*corev1.Service)
			return ok && ok2 && (concerns(before) || concerns(now)) && !sameService(before, now)
		},
	}
}

// sameService reports whether two Services are equal in everything that is read here.
func sameService(a, b *corev1.Service) bool {
	return equality.Semantic.DeepEqual(a.Spec, b.Spec) && equality.Semantic.DeepEqual(a.Labels, b.Labels) &&
		equality.Semantic.DeepEqual(a.Annotations, b.Annotations) && slices.Equal(a.Finalizers, b.Finalizers) &&
		a.DeletionTimestamp.Equal(b.DeletionTimestamp) && a.UID == b.UID &&
		equality.Semantic.DeepEqual(a.Status.LoadBalancer, b.Status.LoadBalancer)
}
