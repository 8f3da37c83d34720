// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Names that users write on Services and Nodes, and that Causeway's own
// processes agree on.
const (
	// SystemNamespace is where the controller and the agents run.
	SystemNamespace = "causeway-system"

	// LoadBalancerClass is the spec.loadBalancerClass of Services whose address
	// comes from a LoadBalancerPool. Services without a class are served too,
	// unless the controller runs with --default-load-balancer=false.
	LoadBalancerClass = "causeway.dev/pool"

	// AddressesAnnotation on a Service asks for LoadBalancer addresses: one or
	// more, comma-separated.
	AddressesAnnotation = "causeway.dev/addresses"

	// PoolAnnotation on a Service names the LoadBalancerPool to take from.
	PoolAnnotation = "causeway.dev/pool"

	// SharingKeyAnnotation on Services that may share one address as long as
	// their ports differ.
	SharingKeyAnnotation = "causeway.dev/sharing-key"

	// SchedulerAnnotation on a Service names its IPVS scheduler, such as rr. Proxy
	// modes other than ipvs do not look at it.
	SchedulerAnnotation = "causeway.dev/ipvs-scheduler"

	// ProvisionerAnnotation on a Service is the load balancer class that serves
	// it. The controller sets it together with LoadBalancerFinalizer, and so
	// knows later, when the type has changed, that the finalizer is its own.
	ProvisionerAnnotation = "causeway.dev/provisioner"

	// ServiceAllocated is the condition of a Service of type LoadBalancer that
	// says whether it has the addresses it asked for, and if not why.
	ServiceAllocated = "causeway.dev/Allocated"

	// ServiceAnnounced is the condition of a Service of type LoadBalancer that
	// says whether its addresses are announced, and where.
	ServiceAnnounced = "causeway.dev/Announced"

	// ServiceHealthy is the condition of a Service behind an external load
	// balancer that says how many nodes pass its health checks.
	ServiceHealthy = "causeway.dev/Healthy"

	// LoadBalancerPoolFinalizer keeps a LoadBalancerPool until the last of its
	// addresses is released.
	LoadBalancerPoolFinalizer = "causeway.dev/addresses-in-use"

	// LoadBalancerFinalizer keeps a Service until its address is released
	// (KEP-980).
	LoadBalancerFinalizer = "service.kubernetes.io/load-balancer-cleanup"

	// EndpointSliceManagedBy is the value of the label
	// endpointslice.kubernetes.io/managed-by on slices that Causeway keeps for
	// Services with a selector. It is the one that clients and the conformance
	// tests look for, and that kube-controller-manager's slices have, too.
	EndpointSliceManagedBy = "endpointslice-controller.k8s.io"

	// EndpointSliceKeeperLabel with the value EndpointSliceKeeper is on the slices
	// of that name that are Causeway's. kube-controller-manager takes labels that
	// the Service does not have off every slice that it keeps.
	EndpointSliceKeeperLabel = "causeway.dev/kept-by"
	EndpointSliceKeeper      = "causeway"

	// EndpointSlicesAnnotation on a Service says who keeps its EndpointSlices
	// where kube-controller-manager could too: auto, take-over or hand-back.
	EndpointSlicesAnnotation = "causeway.dev/endpoint-slices"

	// ServiceEndpointSlicesManaged is the condition of a Service that is True while
	// Causeway manages its EndpointSlices. It is absent where no other controller
	// could.
	ServiceEndpointSlicesManaged = "causeway.dev/EndpointSlicesManaged"

	// GossipSecret is the Secret in SystemNamespace that holds the agents'
	// gossip keys, made by the controller.
	GossipSecret = "causeway-gossip"

	// GossipKey and GossipPreviousKey are the data keys of GossipSecret: the
	// 32-byte key that agents encrypt with, and, for some minutes around a change,
	// another that they accept as well: the one before it, or the one to come.
	GossipKey         = "key"
	GossipPreviousKey = "previous"

	// RotateGossipKeyAnnotation on GossipSecret, with any value, asks the controller
	// for another gossip key. It takes the annotation off when it begins.
	RotateGossipKeyAnnotation = "causeway.dev/rotate-key"

	// GossipKeySinceAnnotation on GossipSecret is when the key came into use,
	// GossipKeyNextAnnotation when the other one is to take its place, and
	// GossipKeyRetireAnnotation when that is not accepted any more; RFC 3339.
	GossipKeySinceAnnotation  = "causeway.dev/key-since"
	GossipKeyNextAnnotation   = "causeway.dev/key-next"
	GossipKeyRetireAnnotation = "causeway.dev/key-retire"

	// WebhookSecret is the Secret in SystemNamespace that holds the admission
	// webhooks' serving certificate, made by the controller.
	WebhookSecret = "causeway-webhook-tls"

	// ConditionInPool on a Service is false while its ClusterIPs or NodePorts
	// are not what the pools would give it: from no pool or another's, or held
	// by another Service, too. It is absent while all is well.
	ConditionInPool = "causeway.dev/InPool"

	// NodeProxyModeSupported is the condition of a Node that says which proxy mode
	// its agent uses: True if that is the one asked for, or the best that auto
	// knows.
	NodeProxyModeSupported = "CausewayProxyModeSupported"

	// ManagedByLabel with the value ManagedBy marks objects that the controller
	// made for itself: ServiceCIDRs and, with the API's own label, IPAddresses.
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "causeway.dev"
)
