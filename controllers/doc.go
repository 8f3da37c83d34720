// SPDX-License-Identifier: Apache-2.0

// Package controllers is the imperative shell of Causeway's controller: one
// file per reconciler or webhook. Each reads the cache, calls a pure function
// of internal/, and writes the API.
//
//	Service ──webhook──> alloc ──────> clusterIP, nodePort
//	Service, Pod, Node ──> endpointslice ──> EndpointSlice, Endpoints
//	Service, pool ──> provisioner ──> LoadBalancerAddress ──> Service.status
//
// Invariants: the API is the only state; all else (bitmaps, indexes) is a
// cache of it, rebuilt at start. One broken object never stops another: it
// gets an event and a condition that say what to do.
package controllers
