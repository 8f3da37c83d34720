// SPDX-License-Identifier: Apache-2.0

// Package endpointslice decides which EndpointSlices (KEP-752) and which legacy
// Endpoints object a Service should have, and how to get there with the fewest
// writes. It is pure: it reads structs and returns structs.
//
//	         Pods, Nodes, Services, slices (events)
//	                       |
//	                     Index            O(change): label pair -> Services,
//	                       |              Service -> Pods, Node -> Pods
//	                      View            one Service, its Pods, its slices
//	                       |
//	Compute   -----------------------     ComputeMirror, ComputeEndpoints
//	targets:  one per Pod and family
//	hints:    trafficDistribution, topology-mode
//	pack:     targets into slices, per family and port list
//	reuse:    reuse what would be deleted for what would be created
//	                       |
//	                     Plan             slices to create, update, delete
//
// # Packing
//
// Endpoints are grouped by family and by the list of ports (named target ports
// may differ between Pods). In a group, in this order:
//
//  1. an endpoint that is already in a slice stays there;
//  2. new endpoints go to slices that must be written anyway, fullest first,
//     then to slices that would become empty;
//  3. full slices of 100 are created; the rest goes to the one unchanged slice
//     in which it leaves the least room, else to a new slice;
//  4. slices that are written anyway are merged where they fit into each other:
//     the saved update pays for the delete, so compaction is free.
//
// The remaining number of writes is the minimum of any layout in which endpoints do
// not move without need.
//
// # Invariants
//
//   - After any part of a plan was written, in Plan's order, no endpoint is missing
//     that was there before and stays. The one exception: a change of the Service's
//     ports can swap endpoints between two slices.
//   - The order of Pods, slices and Nodes in the input is irrelevant.
//   - Computing again on the result changes nothing.
//   - Arguments are never changed, and slices to create or update share no
//     memory with them.
//   - A Service that selects Pods has at least one slice for each of its
//     families, an empty one if necessary, so that a consumer can distinguish
//     "none" from "not yet known".
//   - A bad Pod or Service is a Problem, never an error: the rest is computed.
//
// # Non-goals
//
// Reading or writing the API, the clock, and deciding whether another controller
// manages a Service, beyond listing its slices (see KubeManaged).
package endpointslice
