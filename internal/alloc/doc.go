// SPDX-License-Identifier: Apache-2.0

// Package alloc knows addresses and ports: which there are, which owner has which,
// and which may be granted next.
//
//	"10.96.8.0/22", "10.96.64.10-10.96.64.99"     "30000-30499"
//	              │ ParseRange                          │ ParsePortRange
//	              ▼                                     ▼
//	        Range ───────────────> Span[V] <─────── PortRange
//	                                  │ SetPool
//	                                  ▼
//	 Observe, Next, Take, Forget ──> Allocations[V] ──> Allocation: owner, since, until
//
// Allocations cover one kind of value: IPv4 addresses, IPv6 addresses or ports.
// They know the owners of all values, in a pool or not, and every pool's bitmap of
// values that cannot be granted. The allocations are the truth; a bitmap can be
// thrown away and computed again, which is what SetPool does.
//
// # The life of a value
//
//	        Next, Take               Observe (seen in the API)
//	free ───────────────> pending ───────────────────────────> held
//	  ▲  <─ time is up ───┘  ▲                                   │ Observe without it,
//	  │                      └── the same owner, or on request ┐ │ or Forget
//	  └──────────── time is up ──────────────────────────── quarantined
//
// A pending value that was never seen may be in use all the same: the API server can fail
// between booking a value and storing the Service. So it can be suspect for a while after
// its time is up; suspect values are granted if no other is left. A process that has just
// started does not know what its predecessor suspected, so it marks all values as
// unverified, and then those that it has checked as verified. A check has a time: it ends
// no suspicion that arose later, or that is about a request that could still have been in
// flight. A suspicion ends by such a check or by its own time only, not by the end of a
// quarantine or of another suspicion that is shorter.
//
// A value that is pending, held or quarantined is never chosen for another owner. A
// value without an owner is remembered for its last one by name, so that a Service
// that comes back gets it if it is still free.
//
// Leaders that grant from a pool one after the other keep apart: each begins in a
// part of the pool that those before it have left alone (Epoch).
//
// # Invariants
//
//   - A value is set in a pool's bitmap if and only if it has an allocation or is
//     excluded from that pool.
//   - held beats quarantined and pending: what the API server stored is a fact. Two
//     owners can hold one value; both are known of it.
//   - Every owner's values are what it was last observed with, nothing more, so
//     nothing leaks that a full list of Services would not show.
//   - Time is passed in. Equal calls in equal order give equal results.
//
// # Non-goals
//
// No policy (which Service may use which pool) and no API objects; see package
// services. No persistence: Allocations are rebuilt from the API.
package alloc
