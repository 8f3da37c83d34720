// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Options are the operator's choices, from the controller's flags.
type Options struct {
	// SystemNamespace is where Causeway runs and keeps its Secrets. Empty means
	// v1alpha1.SystemNamespace.
	SystemNamespace string
	// DefaultLoadBalancer serves Services of type LoadBalancer that name no
	// class, too.
	DefaultLoadBalancer bool
	// ExternalLoadBalancers is a file that describes load balancers outside the
	// cluster, each with a class of its own. Empty means none.
	ExternalLoadBalancers string
	// Forwarder is who forwards what comes for LoadBalancer addresses:
	// ForwarderCauseway, which empty means too, or ForwarderKubeProxy.
	Forwarder string
	// IgnoreExcludeLabel has load balancers outside the cluster send to nodes too
	// that have the label node.kubernetes.io/exclude-from-external-load-balancers.
	IgnoreExcludeLabel bool
	// MetalLBAnnotations heeds MetalLB's annotations on Services, too.
	MetalLBAnnotations bool
	// EndpointSlices says who keeps the slices of Services that
	// kube-controller-manager could keep too; empty means auto.
	EndpointSlices EndpointSliceMode
	// EndpointSlicesOwnName is endpointslice.Input.OwnName.
	EndpointSlicesOwnName bool
	// Allocation is about ClusterIPs and NodePorts.
	Allocation AllocationOptions
	// Features switches the parts of the controller on; see Features.
	Features Features
}

// Who forwards on the nodes.
const (
	ForwarderCauseway  = "causeway"
	ForwarderKubeProxy = "kube-proxy"
)

// Features are the parts that can run alone, beside what a cluster already has.
type Features struct {
	// LoadBalancer gives LoadBalancer addresses from pools.
	LoadBalancer bool
	// Allocation gives ClusterIPs and NodePorts from pools, by webhook and
	// reconciler.
	Allocation bool
	// Endpoints keeps EndpointSlices and Endpoints.
	Endpoints bool
}

// retries is how soon a controller tries an object again whose reconciliation
// failed: at once at first, every half minute at last. The default's last is a
// quarter of an hour, so long after an API server has come back.
func retries() workqueue.TypedRateLimiter[reconcile.Request] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](5*time.Millisecond, 30*time.Second)
}

// NewScheme returns a scheme with every type that the controllers use.
func NewScheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(fmt.Sprintf("register API types: %v", err)) // a programming error: the types are compiled in
		}
	}
	return scheme
}

// setup adds one reconciler or webhook to a manager.
type setup struct {
	name string
	when func(Features) bool
	add  func(ctrl.Manager, Options) error
}

// setups is filled by the init function of each reconciler's file.
var setups []setup

// SetupWithManager adds every reconciler and webhook that the options ask for.
// It starts nothing.
func SetupWithManager(mgr ctrl.Manager, opts Options) error {
	if opts.SystemNamespace == "" {
		opts.SystemNamespace = v1alpha1.SystemNamespace
	}
	for _, s := range setups {
		if !s.when(opts.Features) {
			continue
		}
		if err := s.add(mgr, opts); err != nil {
			return fmt.Errorf("set up %s: %w", s.name, err)
		}
	}
	return nil
}
