// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Provisioner gives Services addresses and serves them there. Its methods are
// safe for concurrent use for different owners; the caller never runs two for
// one owner immediately.
type Provisioner interface {
	// Class is the spec.loadBalancerClass of the Services that it serves.
	Class() string

	// Capabilities returns what it can do, which does not change.
	Capabilities() Capabilities

	// Allocate assigns what req asks for to req.Owner, and returns everything that is
	// assigned to it afterwards. What was assigned before and still fits is kept; what
	// no longer fits is released after the rest has been assigned. If the request cannot
	// be met, wholly or partly, Allocation.Unmet is why, and nothing is released.
	Allocate(ctx context.Context, req Request) (Allocation, error)

	// Reserve assigns these addresses, which are in the Service's status and which clients
	// use, to req.Owner, in each family of which it has none. An
	// address that cannot be held is an *AllocationError; the others are held all the
	// same.
	Reserve(ctx context.Context, req Request, addrs []netip.Addr) error

	// Release releases everything that is assigned to the Service of this name, whatever
	// its UID. Nothing assigned is not an error.
	Release(ctx context.Context, owner alloc.Owner) error

	// Ensure serves the Service as described, and returns where it can be reached. It is
	// called again when anything in want changes, and after Result.RequeueAfter.
	Ensure(ctx context.Context, want Desired) (Result, error)

	// Remove stops serving the Service. Being absent is not an error.
	Remove(ctx context.Context, owner alloc.Owner) error
}

// Capabilities is what a provisioner can do; the zero value can do nothing.
type Capabilities struct {
	// Protocols that it can serve.
	Protocols []corev1.Protocol
	// Families that it has addresses of.
	Families []corev1.IPFamily
	// Sharing: several Services can have one address.
	Sharing bool
	// RequestedAddresses: a Service can ask for an address.
	RequestedAddresses bool
	// Pools: a Service can name a pool.
	Pools bool
	// SourceRanges: it enforces spec.loadBalancerSourceRanges, or what it sends
	// to does.
	SourceRanges bool
	// LocalPolicy: with externalTrafficPolicy Local only nodes with a ready
	// endpoint get traffic.
	LocalPolicy bool
	// NeedsNodePorts: it reaches the cluster at NodePorts, so that
	// allocateLoadBalancerNodePorts: false cannot work.
	NeedsNodePorts bool
	// NeedsNodes: Ensure needs Desired.Nodes, and is called when they change.
	NeedsNodes bool
}

// Port is what a client dials, besides the address.
type Port struct {
	Protocol corev1.Protocol
	Port     uint16
}

// Request is what a Service asks for. It holds no references into the Service.
type Request struct {
	Owner alloc.Owner
	// Families are the Service's, primary first; one or two.
	Families []corev1.IPFamily
	// Policy says how many of them are needed.
	Policy corev1.IPFamilyPolicy
	// Addresses requested; empty means any. For a family in Families of which none is
	// listed the provisioner chooses one.
	Addresses []netip.Addr
	// Current addresses in the Service's status. They are kept before others that are
	// assigned.
	Current []netip.Addr
	// Pool requested; empty means any.
	Pool string
	// SharingKey: Services with the same key may have one address. Empty: none.
	SharingKey string
	// Ports decide whether an address can be shared.
	Ports []Port
	// LocalPods names the Pods that policy Local binds the Service to: equal for
	// two Services that select the same; empty with policy Cluster.
	LocalPods string
	// What follows is only compared with the Capabilities.
	HasSourceRanges bool
	NoNodePorts     bool
	LocalPolicy     bool
	// Labels and NamespaceLabels are what pools select by.
	Labels          map[string]string
	NamespaceLabels map[string]string
}

// Allocation is what is assigned to a Service.
type Allocation struct {
	// Addresses in the order of Request.Addresses, then of Request.Families.
	Addresses []netip.Addr
	// Unmet is which part of the request is not met and why; nil for none. Addresses may
	// be non-empty with it: what was assigned before, or the one family of
	// PreferDualStack.
	Unmet *AllocationError
	// Enough is true if what is not met is not required, as the second family of
	// PreferDualStack.
	Enough bool
}

// Desired is a Service as it should be served.
type Desired struct {
	Owner     alloc.Owner
	Addresses []netip.Addr
	Ports     []ServicePort
	// Nodes that may take traffic; nil unless Capabilities.NeedsNodes.
	Nodes []Node
	// LocalPolicy is externalTrafficPolicy Local: only nodes with a ready endpoint get
	// traffic, as the health check at HealthCheckNodePort reports.
	LocalPolicy         bool
	HealthCheckNodePort uint16
	// SourceRanges that may connect; empty means all.
	SourceRanges []netip.Prefix
	// ClientIPAffinity keeps a client on one node.
	ClientIPAffinity bool
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name string
	Port
	// NodePort is 0 when there is none.
	NodePort uint16
}

// Node is a node that load balancers outside the cluster may send to.
type Node struct {
	Name string
	// Addresses are the InternalIPs, one a family at most.
	Addresses []netip.Addr
	// ReadyEndpoints of the Service on this node.
	ReadyEndpoints int
}

// Result is where a Service can be reached.
type Result struct {
	Ingress []Ingress
	// Conditions for Service.status.conditions; their types are qualified names
	// of the provisioner's own.
	Conditions []metav1.Condition
	// RequeueAfter is when to call Ensure again though nothing changed, for
	// example to repair drift; 0 means never.
	RequeueAfter time.Duration
}

// Ingress is one address at which a Service is served.
type Ingress struct {
	Address netip.Addr
	// IPMode tells kube-proxy and the agents whether packets arrive with the
	// address as destination (VIP) or not (Proxy); KEP-1860.
	IPMode corev1.LoadBalancerIPMode
	// PortErrors are the ports that are not served there, with the reason in
	// the format of PortStatus.error.
	PortErrors map[Port]string
}
