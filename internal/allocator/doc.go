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
// One replica at a time grants, the holder of the Lease causeway-allocator
// (Election). The others send it what they are asked, over the webhooks' own port
// and certificate, and wait for a successor while there is none. So a value is
// never granted twice:
//
//   - One State grants, under one lock, and what it granted stays booked until a
//     Service is seen with it or a minute has passed.
//   - A leader looks at its lease again after it has decided and before it
//     answers, and stops a second before others may take the lease over.
//   - A successor has watched the same Services all along. It grants a second
//     after its predecessor may have granted for the last time, so that it sees
//     what came of the last grants. A Service that takes longer than that to be
//     stored does not meet another with the same value either: for a minute a
//     successor takes from a part of the pool that its predecessors left to it
//     (alloc.Epoch), unless all else is full. Then the API server, which is the judge
//     of that, refuses the later one.
//   - A replica that dies with a request in its hands leaves it to the API
//     server, which would allocate by itself, perhaps what another request was
//     just granted. So there is a second webhook, for what the first left
//     without, and the API server asks again: see controllers/clusterip.
//
// The replica that grants need not be the leader that writes status. Its death
// costs requests a wait until its lease has ended and its successor has prepared
// (leaseDuration, preparation); the death of all costs nothing but pools:
// failurePolicy is Ignore, the API server allocates, and the condition
// causeway.dev/InPool tells what came of it.
//
// What the API server itself loses is looked for (PortAudit): an update of a
// Service that loses a race against another write keeps its ports and addresses
// booked there until a repair. A successor gives no port while it has others
// before it has asked whether the API server would.
//
// It may import internal/alloc, internal/queue and the API, and no controller.
package allocator
