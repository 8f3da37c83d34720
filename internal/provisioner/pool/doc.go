// SPDX-License-Identifier: Apache-2.0

// Package pool is the provisioner whose addresses come from LoadBalancerPools
// and are announced on the LAN by the agents.
//
//	LoadBalancerPool, LoadBalancerAddress ──events──> Index (memory)
//	                                                    │
//	Request ───────────────────────> Reserve: planner (pure) decides: keep, assign, drop;
//	                                          what it assigns is in flight
//	      create or update LoadBalancerAddress ──> Commit, or Release
//
// The record of an address is a LoadBalancerAddress whose name is the address,
// so creating it is the lock: the loser learns it from the API server, puts
// the winner's record into the Index and plans again. The Index is a cache and
// may be stale; that costs a retry, never an address given twice.
//
// # Choosing
//
//	addresses asked for     exactly those, all or none
//	reserved for it         before anything else
//	assigned before         from quarantine
//	same sharing key        with room for its ports
//	pools                   by priority, then those with selectors, then by name;
//	                        one that has all families goes before two pools
//
// In a pool the lowest free address of the first range with one is taken. Each
// range is a bitmap of up to 2^48 addresses; beyond that an IPv6 range serves
// requests by address only.
//
// # Invariants
//
//   - What is assigned to a Service and still fits is kept, whatever became of the pool.
//   - Nothing is assigned unless all that is required can be; what no longer fits
//     is dropped after that.
//   - Memory is changed after the API call that it describes has succeeded. An
//     address on its way is marked, so that no other worker chooses it.
//   - A record without owner is deleted (or, reserved, kept) with a
//     precondition on its resource version.
//
// # Non-goals
//
// Elections and announcing (package announce); pool status and quarantine's end
// (the pool's reconciler, which asks the Index).
package pool
