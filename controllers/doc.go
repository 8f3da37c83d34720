// SPDX-License-Identifier: Apache-2.0

// Package controllers is the imperative shell of Causeway's controller: one
// file per reconciler or webhook. Each reads the cache, calls a pure function
// of internal/, and writes the API.
//
//	Service ──webhook──> alloc ──────> clusterIP, nodePort
//	Service, Pod, Node ──> endpointslice ──> EndpointSlice, Endpoints
//	Service, pool ──> provisioner ──> LoadBalancerAddress ──> Service.status
//
// # ClusterIPs and NodePorts with several replicas
//
// The webhook is served by every replica, but addresses and ports are granted by
// one at a time, the holder of the Lease causeway-allocator (term). The others
// send it what they are asked, over the webhooks' own port and certificate, and
// wait for a successor while there is none.
//
//	API server ──> replica B ──not the holder──> replica A ──> book ──> grant
//	      └──────> replica A                       ▲ Lease, 4 s
//
// So a value is never granted twice:
//
//   - One book grants, under one lock, and what it granted stays booked until a
//     Service is seen with it or a minute has passed.
//   - A holder looks at its lease again after it has decided and before it
//     answers, and stops a second before others may take the lease over.
//   - A successor has watched the same Services all along. It grants a second
//     after its predecessor may have granted for the last time, so that it sees
//     what came of the last grants. A Service that takes longer than that to be
//     stored does not meet another with the same value either: for a minute a
//     successor takes from a part of the pool that its predecessors left to it
//     (alloc.Turn), unless all else is full. Then the API server, which is the judge
//     of that, refuses the later one.
//   - A replica that dies with a request in its hands leaves it to the API
//     server, which would allocate by itself, perhaps what another request was
//     just granted. So there is a second webhook, for what the first left
//     without, and the API server asks again: see ServiceAllocator.
//
// The replica that grants need not be the leader that writes status. Its death
// costs requests a wait until its lease has ended and its successor has prepared
// (termFor, preparation); the death of all costs nothing but
// pools: failurePolicy is Ignore, the API server allocates, and the condition
// causeway.dev/InPool tells what came of it.
//
// What the API server itself loses is looked for (portAudit): an update of a
// Service that loses a race against another write keeps its ports and addresses
// booked there until a repair. A successor gives no port while it has others
// before it has asked whether the API server would.
//
// Invariants: the API is the only state; all else (bitmaps, indexes) is a
// cache of it, rebuilt at start. One broken object never stops another: it
// gets an event and a condition that say what to do.
package controllers
