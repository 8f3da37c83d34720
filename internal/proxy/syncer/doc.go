// SPDX-License-Identifier: Apache-2.0

// Package syncer keeps a backend at the model's Desired.
//
//	notify --> inbox --+                              +--> Backend.Apply, Resync, Repair
//	drift -----^       +--> one goroutine (State) --+                |
//	timer, retries ----+             ^              incremental      v
//	                                 +--- error or rejected -------- Report --> progress, problems
//
//	inbox          what has come in
//	Incremental    the record of what the kernel has and rejects; drives the Backend
//	retries        when to try again
//	progress       the Status
//	problems       what is wrong with Services
//
// There is no minimum interval: a change is programmed when it arrives, and
// what arrives while the kernel is busy is programmed together next.
//
// # Invariants
//
//   - A sync programs every Service that changed since the last successful one.
//   - After an error, a change of the kernel by another program, a lost notification
//     or the resync interval, everything is read back and compared; after a change by
//     another program only if the Backend has not heard of each part of it.
//   - A Service that the kernel rejects does not block others: it counts
//     as not yet synced, and is retried when it changes and on a timer.
//   - Status reports since when a change is Behind: from its notification until
//     the kernel has it and Applied has returned. So a caller of Status notices a
//     Backend that does not return.
//   - Status reports InSync from a successful sync until one fails. The sync that
//     finds a change by another program repairs it; until then Status does not
//     know of it.
//
// # Non-goals
//
// No knowledge of the API server or the kernel.
package syncer
