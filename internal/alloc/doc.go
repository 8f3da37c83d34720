// SPDX-License-Identifier: Apache-2.0

// Package alloc keeps the books of addresses and ports: which there are, who
// has which, and which may be given out next.
//
//	"10.96.8.0/22", "10.96.64.10-10.96.64.99"     "30000-30499"
//	              │ ParseRange                          │ ParsePortRange
//	              ▼                                     ▼
//	        Range ───────────────> Span[V] <─────── PortRange
//	                                  │ SetPool
//	                                  ▼
//	   Observe, Pick, Release ──> Allocations[V] ──> Allocation: who, since, until
//
// A Allocations covers one kind of value: IPv4 addresses, IPv6 addresses or ports.
// It knows the allocations of all values, in a pool or not, and every pool's bitmap
// of values that cannot be given out. The allocations are the truth; a bitmap can be
// thrown away and computed again, which is what SetPool does.
//
// # The life of a value
//
//	          Pick                 Observe (seen in the API)
//	free ───────────────> picked ───────────────────────────> held
//	  ▲  <─ time is up ───┘  ▲                                 │ Observe without it,
//	  │                      └── the same owner, or by name ─┐ │ or Forget
//	  └──────────── time is up ──────────────────────────── resting
//
// A pick that was never seen may be in use all the same: whoever stores Services
// can fail between booking a value and storing the Service. So it can be asked
// to stay doubted for a while after its time is up; doubted values are chosen
// when no other is left. A process that has just begun does not know what its
// predecessor doubted, so it says of all values that they are unproven, and
// trusts those that it has looked at. A look is of a time: it ends no doubt that
// arose later, or that is about a request that could still have been on its way.
// Nothing but such a look or its own end ends a suspectFor: not a rest that is over,
// nor another doubt that is shorter.
//
// A value that is picked, held or resting is never chosen for somebody else. A
// value that nobody has, but that somebody had, is remembered for that name, so
// that a Service that comes back gets it if it is still free.
//
// Those who grant from a pool one after the other keep out of each other's way:
// each begins in a part of the pool that those before it have left alone (Epoch).
//
// # Invariants
//
//   - A value is set in a pool's bitmap if and only if it has a allocation or is
//     excluded from that pool.
//   - held beats resting and picked: what the API server stored is a fact. Two
//     owners can hold one value; that is reported (Duplicates), not hidden.
//   - Every owner's values are what it was last observed with, nothing more, so
//     nothing leaks that a full list of Services would not show.
//   - Time is passed in. Equal calls in equal order give equal allocations.
//
// # Non-goals
//
// No policy (who may use which pool) and no API objects; see package book
// and the controllers. No persistence: a allocations is rebuilt from the API.
package alloc
