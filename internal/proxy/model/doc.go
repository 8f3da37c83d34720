// SPDX-License-Identifier: Apache-2.0

// Package model decides what one node must do with packets that are sent to
// Services: which addresses and ports it forwards, where to, for whom.
//
//	Service + EndpointSlices --+
//	                           +-- ComputeService --> Service --+
//	Node ----------------------+                                +-- State --> Desired
//	                                        other Services -----+   (who owns a frontend)
//
// All policy lives here: readiness and the fall-back to terminating
// endpoints (KEP-1669), traffic policies (KEP-2086, KEP-1138 for the in-cluster
// short cut), topology hints (KEP-2433, KEP-3015), affinity, source ranges,
// externalIPs, ipMode (KEP-1860), reject and drop. A backend only translates.
//
// # Views
//
// A frontend is seen from two sides. Inside are the node itself and the Pods
// that run on it; outside is everybody else, Pods of other nodes included.
// Only externalTrafficPolicy Local makes the two differ: outside gets the
// node's own endpoints (or nothing), inside gets all of them.
//
// Services that share a load balancer address may have their Pods on different
// nodes, and one node announces it for all of them. There policy Local means
// the node's own endpoints first: what comes for a Service without any goes on
// to the others, masqueraded.
//
// # Ports that no Service has
//
// At a ClusterIP they are refused in both views: the address is nobody else's.
// A load balancer IP can be another host's own (a node's, that of a proxy
// before the cluster), who answers at ports of its own. From outside such a
// packet comes only because this node has said that the address is here; passed
// on, it would come back. So it is refused. From inside it goes its way.
//
// # Masquerade
//
// A connection needs the node's address as its source when replies would
// otherwise not come back through the node that did the translation. That is
// decided by two facts that Desired carries, for every frontend alike:
//
//	client                      endpoint on this node    endpoint elsewhere
//	Pod of this node            only to itself (hairpin) no
//	the node itself             no (but from 127.0.0.1)  yes
//	anybody else                no                       yes
//
// Node.MasqueradeAll says yes everywhere but at frontends of policy Local, as
// kube-proxy's flag of that name does.
//
// This keeps the client's address where kube-proxy drops it without need:
// policy Cluster with the endpoint on the node that was dialled.
//
// # Invariants
//
//   - Equal inputs, in any order, give equal results.
//   - One changed Service costs the work of that Service, and of those that
//     gain or lose a frontend by it.
//   - A Service with broken fields yields Problems and what remains of it; it
//     never affects another.
//   - Published values are never changed afterwards; readers may keep them.
//
// # Non-goals
//
// No I/O, no clock, no logging, no kernel terms.
package model
