// SPDX-License-Identifier: Apache-2.0

// Package allocator grants ClusterIPs and NodePorts in a running cluster, with
// several replicas of the controller. What may be granted is decided in
// internal/alloc; this package keeps what is known of the cluster (State), which
// replica may grant (Leadership), and what the API server loses (PortAudit) or
// must not give out (Reservations).
//
//	webhook, reconciler ──Request──> Grant ──not the leader──> Forwarder ──> replica A
//	                                   │ leader
//	informers ──> State <── PortAudit  ▼
//	                └──────> Reservations, Grant
//
// One replica at a time grants, the holder of the Lease causeway-allocator (Election). The
// others forward requests to it, over the webhooks' port and certificate, and wait for a
// successor while there is none. So a value is never granted twice:
//
//   - One State grants, under one lock, and what it granted stays booked until a
//     Service is seen with it or a minute has passed.
//   - A leader checks its lease again after it has decided and before it answers, and
//     stops a second before others may acquire the lease.
//   - A successor has watched the same Services. It grants from a second after its
//     predecessor may have granted for the last time, so that it sees the Services of
//     the last grants. A Service that takes longer to be stored gets no other's value
//     either: for a minute a successor grants from a part of the pool that its
//     predecessors left to it (alloc.Epoch), unless all else is full. Then the API server
//     denies the later one.
//   - If a replica dies during a request, the API server would allocate itself, perhaps
//     what another request was just granted. So there is a second webhook, for Services
//     that the first left without values: see controllers/clusterip.
//
// The replica that grants need not be the leader that writes status. Its death
// costs requests a wait until its lease has ended and its successor has prepared
// (leaseDuration, preparation). While all are dead only the pools are without effect:
// failurePolicy is Ignore, the API server allocates, and the condition
// causeway.dev/InPool reports the result.
//
// PortAudit finds values that the API server leaks: an update of a Service that loses a race
// against another write keeps its ports and addresses booked there until a repair. A
// successor prefers ports that it has verified with the API server.
//
// It may import internal/alloc, internal/queue and the API, and no controller.
package allocator
