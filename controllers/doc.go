// SPDX-License-Identifier: Apache-2.0

// Package controllers is the list of all reconcilers and admission webhooks of
// Causeway's controller, and what the manager needs for them: scheme and cache.
// Each package below is a shell: it reads the cache, calls a pure function of
// internal/, and writes the API.
//
//	Service ──webhook──> clusterip ──Grant──> internal/allocator ──> clusterIP, nodePort
//	Service, Pod, Node ──> endpoints ──> EndpointSlice, Endpoints
//	Service, pool ──> loadbalancer ──> LoadBalancerAddress ──> Service.status
//	gossipkey ──> the Secret of the agents' gossip
//
// No package here imports another, but for validate, which the webhooks of all
// pools share.
//
// Invariants: the API is the only state; all else (bitmaps, indexes) is a
// cache of it, rebuilt at start. One broken object never stops another: it
// gets an event and a condition that say what to do.
package controllers
