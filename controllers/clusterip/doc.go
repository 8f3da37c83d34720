// SPDX-License-Identifier: Apache-2.0

// Package clusterip gives Services their ClusterIPs and NodePorts from pools, by
// an admission webhook, and reports what a Service has that the pools would not
// give it, and how full the pools are.
//
//	Service ──Webhook──────────> internal/allocator ──> Grant as JSON patch
//	Service ──ServiceReconciler─────────┘ └──> Problems ──> condition InPool
//	ClusterIPPool, NodePortPool ──reconcilers──> status, ServiceCIDRs
//
// What may be granted, and by which replica, internal/allocator knows; the
// webhook and the reconciler ask it alike.
package clusterip
