// SPDX-License-Identifier: Apache-2.0

// Package model decides what one node must do with packets that are sent to
// Services: which addresses and ports it forwards, to which endpoints, for which
// clients.
//
//	Service + EndpointSlices --+
//	                           +-- ComputeService --> Service --+
//	Node ----------------------+                                +-- State --> Desired
//	                                        other Services -----+   (who owns a frontend)
//
// All policy is here: readiness and the fallback to terminating endpoints (KEP-1669),
// traffic policies (KEP-2086; KEP-1138 for the in-cluster shortcut), topology hints
// (KEP-2433, KEP-3015), affinity, source ranges, externalIPs, ipMode (KEP-1860),
// reject and drop. A backend only translates.
//
// # Views
//
// A frontend has two views. Clients inside are the node itself and the Pods that
// run on it; clients outside are all others, including Pods of other nodes.
// Only externalTrafficPolicy Local makes the views differ: outside gets the
// node's own endpoints (or none), inside gets all of them.
//
// Services that share a load balancer address may have their Pods on different
// nodes, and one node announces the address for all of them. There policy Local
// prefers the node's own endpoints: traffic for a Service without any is forwarded
// to the others, masqueraded.
//
// # Ports without a Service
//
// At a ClusterIP they are rejected in both views: no other host has the address.
// A load balancer IP can be another host's own (a node's, or that of a proxy in
// front of the cluster), which answers at ports of its own. A packet from outside
// arrives only because this node announces the address; forwarded, it would come
// back. So it is rejected. A packet from inside is forwarded normally.
//
// # Masquerade
//
// A connection needs the node's address as its source if replies would otherwise
// bypass the node that did the translation. Two facts in Desired decide this, in the
// same way for every frontend:
//
//	client                      endpoint on this node    endpoint elsewhere
//	Pod of this node            only to itself (hairpin) no
//	the node itself             no (but from 127.0.0.1)  yes
//	any other                   no                       yes
//
// Node.MasqueradeAll means yes everywhere except at frontends of policy Local, like
// kube-proxy's flag of the same name.
//
// This preserves the client's address where kube-proxy masquerades without need:
// policy Cluster with the endpoint on the node that the client dialed.
//
// # Invariants
//
//   - Equal inputs, in any order, give equal results.
//   - A changed Service costs the work for that Service, and for those that gain or
//     lose a frontend because of it.
//   - A Service with invalid fields yields Problems and its valid part; it never
//     affects another Service.
//   - Published values are never changed afterwards; readers may keep them.
//
// # Non-goals
//
// No I/O, no clock, no logging, no kernel terms.
package model
