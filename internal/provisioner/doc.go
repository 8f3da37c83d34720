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
// Holding an address (Allocate, Reserve, Release) is apart from serving it
// (Ensure, Remove): an address is held for as long as the Service exists, while
// what is served changes with every node and endpoint.
//
// # Invariants
//
//   - Every method is idempotent and level-based: it is told what should be, not
//     what changed, and may be called again after any error or restart.
//   - Allocate never takes away an address that the Service holds, unless the
//     Service itself asks for something else and that has been given already.
//   - A request that cannot be met is an *AllocationError, which names the cause and what
//     to do. Any other error is a fault, worth retrying.
//   - Capabilities are compared with the request before a provisioner is called.
//
// # Non-goals
//
// No Kubernetes client here: a provisioner that needs one is given one. Who
// answers ARP for a pool's address is the agents' business.
package provisioner
