// SPDX-License-Identifier: Apache-2.0

// Package services decides, without a cluster at hand, which ClusterIPs and
// NodePorts a Service gets and whether it may have those that it asks for.
//
//	ClusterIPPool, NodePortPool, LoadBalancerPool, ServiceCIDR ──Set...──┐
//	Services in the API ──Observe, Forget──> Allocations: IPv4, IPv6, ports
//	                                                                     │
//	Service about to be stored ──NeedsOf──> Needs ──Admit──> Grant or *Denied
//	Service that is stored     ──────────────────Check─────> []Problem
//
// # What a Service needs
//
// NeedsOf foretells what the API server's own allocation would do with the
// object after the webhooks: which addresses and ports it would choose, which
// it would only check, and which it would carry over from the old object. What
// is carried over is not touched.
//
// # Where a value comes from
//
//  1. The value that the Service asks for, when a pool that selects the Service
//     has it, or no pool has it and none selects the Service.
//  2. What a Service of the same name had before, while it is free.
//  3. A free value of the pools that select the Service, by priority.
//  4. When no pool selects it: the cluster's own ranges less all pools, so that
//     no Service takes from a tenant's pool by chance. (Left to itself the API
//     server chooses from any ServiceCIDR in no order.) Without any pool nothing
//     is chosen and the API server allocates as ever.
//
// # Invariants
//
//   - Admit either grants everything or leaves no trace, and a dry run leaves
//     none either way.
//   - A value granted is not granted again before it was seen in the API or is no
//     longer pending; or, when a pool or a namespace has none left, before two
//     seconds have passed: a client that asks for much and stores nothing keeps a
//     pool from others no longer.
//   - No answer names a Service of another namespace.
//   - Equal calls in equal order give equal results: time and chance are passed in.
//
// # Non-goals
//
// No API calls: the caller makes a denial because of a taken value certain by
// looking at the holder, because what is known here may be behind. No uniqueness
// among several processes: one grants at a time (package internal/allocator).
package services
