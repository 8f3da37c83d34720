// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"cmp"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/clusterip"
	"github.com/causeway-lb/causeway/controllers/endpoints"
	"github.com/causeway-lb/causeway/controllers/gossipkey"
	"github.com/causeway-lb/causeway/controllers/loadbalancer"
)

// Options are the operator's choices, from the controller's flags.
type Options struct {
	// SystemNamespace is where Causeway runs and keeps its Secrets. Empty means
	// v1alpha1.SystemNamespace.
	SystemNamespace string
	// LoadBalancer is about LoadBalancer addresses.
	LoadBalancer loadbalancer.Options
	// EndpointSlices says who keeps the slices of Services that
	// kube-controller-manager could keep too; empty means auto.
	EndpointSlices endpoints.Mode
	// EndpointSlicesOwnName is endpointslice.Input.OwnName.
	EndpointSlicesOwnName bool
	// Allocation is about ClusterIPs and NodePorts.
	Allocation clusterip.Options
	// Features switches the parts of the controller on; see Features.
	Features Features
}

// Features are the parts that can run alone, alongside what a cluster already has.
type Features struct {
	// LoadBalancer returns LoadBalancer addresses from pools.
	LoadBalancer bool
	// Allocation returns ClusterIPs and NodePorts from pools, by webhook and
	// reconciler.
	Allocation bool
	// Endpoints keeps EndpointSlices and Endpoints.
	Endpoints bool
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

// SetupWithManager adds every reconciler and webhook that the options ask for.
// It starts nothing.
func SetupWithManager(mgr ctrl.Manager, opts Options) error {
	opts.SystemNamespace = cmp.Or(opts.SystemNamespace, v1alpha1.SystemNamespace)
	opts.Allocation.SystemNamespace = opts.SystemNamespace
	opts.Allocation.MetalLBAnnotations = opts.LoadBalancer.MetalLBAnnotations
	for _, part := range []struct {
		name string
		on   bool
		add  func() error
	}{
		{"allocation", opts.Features.Allocation, func() error { return clusterip.SetupWithManager(mgr, opts.Allocation) }},
		{"endpoints", opts.Features.Endpoints, func() error { return endpoints.SetupWithManager(mgr, opts.EndpointSlices, opts.EndpointSlicesOwnName) }},
		{"load balancer", opts.Features.LoadBalancer, func() error { return loadbalancer.SetupWithManager(mgr, opts.LoadBalancer) }},
		{"gossip key", opts.Features.LoadBalancer, func() error {
			return mgr.Add(&gossipkey.Reconciler{Client: mgr.GetClient(), Namespace: opts.SystemNamespace})
		}},
	} {
		if !part.on {
			continue
		}
		if err := part.add(); err != nil {
			return fmt.Errorf("set up %s: %w", part.name, err)
		}
	}
	return nil
}
