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
//   - A Sync is told of every Service that changed since the last successful
//     one.
//   - After an error, a change by others to the kernel, a lost notification or
//     the resync interval, everything is read back and compared; after a change by
//     others not, if the Backend has heard of each part of it.
//   - A Service that the Backend reports as refused holds nobody up: it counts
//     as not yet synced, and is tried again when it changes and on a timer.
//   - Status says since when something is Behind, from when it was notified until
//     the kernel has it and Applied has returned; so a Backend that does not
//     return is noticed, by who asks.
//   - Status says InSync from a successful Sync until one fails. What others do
//     to the kernel meanwhile is repaired by the Sync that finds it: until then
//     Status does not know of it.
//
// # Non-goals
//
// No knowledge of the API server or the kernel.
package syncer
