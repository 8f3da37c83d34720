// SPDX-License-Identifier: Apache-2.0

// Package clusterip allocates the ClusterIPs and NodePorts of Services from pools, by an
// admission webhook, and reports values of Services that the pools would not give them,
// and the usage of the pools.
//
//	Service ──Webhook──────────> internal/allocator ──> Grant as JSON patch
//	Service ──ServiceReconciler─────────┘ └──> Problems ──> condition InPool
//	ClusterIPPool, NodePortPool ──reconcilers──> status, ServiceCIDRs
//
// internal/allocator decides what may be granted, and by which replica, for the webhook and
// the reconciler.
package clusterip
