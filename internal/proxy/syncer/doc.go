// SPDX-License-Identifier: Apache-2.0

// Package syncer keeps a backend at the model's Desired.
//
//	notify(Service) --+                     +--> Backend.Sync --> Report
//	notify(node) -----+--> one goroutine ---+                       |
//	drift, timer -----+    (State)          +<-- back-off <-- error-+
//
// There is no minimum interval: a change is programmed when it arrives, and
// what arrives while the kernel is busy is programmed together next.
//
// # Invariants
//
//   - A Sync gets every Service that changed since the last successful one.
//   - After an error, a change of the kernel by another program, a lost notification
//     or the resync interval, everything is read back and compared; after a change by
//     another program only if the Backend has not heard of each part of it.
//   - A Service that the Backend reports as refused does not block others: it counts
//     as not yet synced, and is retried when it changes and on a timer.
//   - Status reports since when a change is Behind: from its notification until
//     the kernel has it and Applied has returned. So a caller of Status notices a
//     Backend that does not return.
//   - Status reports InSync from a successful Sync until one fails. The Sync that
//     finds a change by another program repairs it; until then Status does not
//     know of it.
//
// # Non-goals
//
// No knowledge of the API server or the kernel.
package syncer
