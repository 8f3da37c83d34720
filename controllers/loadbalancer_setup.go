// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
)

// workers is how many Services are reconciled at once. Most of a
// reconciliation is waiting for the API server.
const workers = 8

func init() {
	setups = append(setups, setup{name: "load balancer", when: func(f Features) bool { return f.LoadBalancer }, add: addLoadBalancer})
}

// addLoadBalancer sets up what gives LoadBalancer addresses: one index, fed by
// the Service controller's watches, read by it and by the pools' controller.
func addLoadBalancer(mgr ctrl.Manager, opts Options) error {
	index := pool.NewIndex()
	config := pool.Config{
		Index:   index,
		Records: pool.API{Writer: mgr.GetClient(), Reader: mgr.GetAPIReader()},
		Ports:   cachedPorts(mgr.GetClient()),
		Lost:    allocateLost.Inc,
	}
	switch opts.Forwarder {
	case "", ForwarderCauseway:
	case ForwarderKubeProxy:
		config.LocalPods = cachedLocalPods(mgr.GetClient())
	default:
		return fmt.Errorf("unknown forwarder %q: choose %s or %s", opts.Forwarder, ForwarderCauseway, ForwarderKubeProxy)
	}
	pools, err := pool.New(config)
	if err != nil {
		return err
	}
	defaultClass := ""
	if opts.DefaultLoadBalancer {
		defaultClass = pools.Class()
	}
	external, err := externalProvisioners(mgr, opts.ExternalLoadBalancers)
	if err != nil {
		return err
	}
	registry, err := provisioner.NewRegistry(defaultClass, append(external, pools)...)
	if err != nil {
		return err
	}
	poolController := &LoadBalancerPoolReconciler{
		Client: mgr.GetClient(), Index: index, Forget: pools.Forget,
		Recorder: mgr.GetEventRecorder("causeway-controller"),
	}
	if err := poolController.SetupWithManager(mgr); err != nil {
		return err
	}
	if err := (&LoadBalancerPoolValidator{Reader: mgr.GetClient()}).SetupWithManager(mgr); err != nil {
		return err
	}
	return (&LoadBalancerReconciler{
		Client: mgr.GetClient(), Registry: registry, Index: index,
		Recorder: mgr.GetEventRecorder("causeway-controller"),
		Traffic:  cachedTraffic{mgr.GetClient(), opts.IgnoreExcludeLabel},
		MetalLB:  opts.MetalLBAnnotations,
		touch:    poolController.Touch,
		indexed:  &poolController.indexed,
	}).SetupWithManager(mgr)
}

// cachedService is nil when the cache knows no such Service.
func cachedService(c client.Reader, o provisioner.Owner) *corev1.Service {
	svc := &corev1.Service{}
	if err := c.Get(context.Background(), client.ObjectKey{Namespace: o.Namespace, Name: o.Name}, svc); err != nil {
		return nil
	}
	return svc
}

// cachedLocalPods answers from the cache which Pods policy Local binds a
// Service to.
func cachedLocalPods(c client.Reader) func(provisioner.Owner) string {
	return func(o provisioner.Owner) string {
		if svc := cachedService(c, o); svc != nil {
			return provisioner.LocalPods(svc)
		}
		return ""
	}
}

// cachedPorts answers from the cache which ports a Service has.
func cachedPorts(c client.Reader) pool.PortsFunc {
	return func(o provisioner.Owner) []provisioner.Port {
		svc := cachedService(c, o)
		if svc == nil {
			return nil
		}
		var ports []provisioner.Port
		for _, p := range provisioner.DesiredOf(svc, nil).Ports {
			ports = append(ports, p.Port)
		}
		return ports
	}
}

// serveBackoff is when to try again to serve a Service.
func serveBackoff() workqueue.TypedRateLimiter[types.NamespacedName] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](serveBackoffMin, serveBackoffMax)
}

// SetupWithManager adds the reconciler to a manager. Its watches feed the
// index: controller-runtime starts the workers after every handler has seen the
// initial lists, so that nothing is allocated before the index is complete.
func (r *LoadBalancerReconciler) SetupWithManager(mgr ctrl.Manager) error {
	r.waiting = newWaiting()
	r.backoff = serveBackoff()
	if r.touch == nil {
		r.touch = func(...string) {}
	}
	if r.indexed == nil {
		r.indexed = &gate{}
	}
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](200*time.Millisecond, serveBackoffMax)
	fill := func(kind client.Object, feed handler.EventHandler) source.Source {
		return r.indexed.after(source.Kind(mgr.GetCache(), kind, feed))
	}
	build := ctrl.NewControllerManagedBy(mgr).
		Named("loadbalancer").
		For(&corev1.Service{}, builder.WithPredicates(servicePredicate())).
		Watches(&corev1.Service{}, r.serviceFeed(), builder.WithPredicates(servicePredicate())).
		Watches(&corev1.Namespace{}, r.namespaceFeed(), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WatchesRawSource(fill(&v1alpha1.LoadBalancerAddress{}, r.addressFeed())).
		WatchesRawSource(fill(&v1alpha1.LoadBalancerPool{}, r.poolFeed())).
		WatchesRawSource(fill(&corev1.Node{}, r.exclusionFeed(nodeExclusions))).
		WatchesRawSource(fill(&networkingv1.ServiceCIDR{}, r.exclusionFeed(serviceExclusions))).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers, RateLimiter: limiter})
	if r.needsNodes() {
		if err := indexSlices(mgr); err != nil {
			return err
		}
		build = build.Watches(&corev1.Node{}, r.nodeFeed()).Watches(&discoveryv1.EndpointSlice{}, r.sliceFeed())
	}
	if err := build.Complete(r); err != nil {
		return fmt.Errorf("set up controller for LoadBalancer Services: %w", err)
	}
	return nil
}

// needsNodes tells whether any provisioner is told about nodes.
func (r *LoadBalancerReconciler) needsNodes() bool {
	return slices.ContainsFunc(r.Registry.Classes(), func(class string) bool {
		p, _ := r.Registry.Class(class)
		return p.Capabilities().NeedsNodes
	})
}

// servicePredicate lets through Services that are, or were, of type
// LoadBalancer, when something that matters has changed.
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
