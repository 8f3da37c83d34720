// SPDX-License-Identifier: Apache-2.0

// Package loadbalancer gives Services of type LoadBalancer their addresses, by
// the provisioner of their class, and reports the state of LoadBalancerPools.
//
//	informers ──source──> pool.Index <── PoolReconciler ──> pool status
//	                          │
//	Service ──ServiceReconciler──> provisioner (Allocate, Ensure) ──> Service.status
//
// One Index is fed by one source; the pools' reconciler begins when it is
// complete. It may import internal/provisioner and everything below it.
package loadbalancer
