// SPDX-License-Identifier: Apache-2.0

// Package provisioner is the seam between Services of type LoadBalancer and
// what stands behind them: a pool of addresses on the LAN (package pool) or a
// load balancer outside the cluster (package haproxy). spec.loadBalancerClass
// picks one from a Registry.
//
//	Service ──ParseRequest──> Request ──Allocate──> Allocation (addresses)
//	                                                   │
//	Service, Nodes, EndpointSlices ──> Desired ──Ensure──> Result
//	                                                   │
//	                      status.loadBalancer.ingress, conditions, come again
//
// Assigning an address (Allocate, Reserve, Release) is separate from serving it (Ensure,
// Remove): an address is assigned for as long as the Service exists, while what is served
// changes with every node and endpoint.
//
// # Invariants
//
//   - Every method is idempotent and level-based: its argument is what should be, not
//     what changed, and it may be called again after any error or restart.
//   - Allocate never releases an address of the Service, unless the Service itself
//     requests something else and that has been assigned already.
//   - A request that cannot be met is an *AllocationError, which names the cause and what
//     to do. Any other error is a fault, worth retrying.
//   - Capabilities are compared with the request before a provisioner is called.
//
// # Non-goals
//
// No Kubernetes client: a provisioner that needs one gets it from its caller. The agents
// decide which node answers ARP for a pool's address.
package provisioner
