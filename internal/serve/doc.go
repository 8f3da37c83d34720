// SPDX-License-Identifier: Apache-2.0

// Package serve is how Causeway's programs answer over HTTP where anybody on the
// nodes' network may ask.
//
//	listener -> Limit -> Server (timeouts) -> ReadOnly -> [Reviewer] -> handler
//
// Invariants:
//
//   - No connection lasts longer than the timeouts of Server, whatever the client
//     sends or leaves unsent.
//   - There are at most as many connections as Limit says. Who opens too many
//     ends its own, so that a probe from elsewhere still gets its answer.
//   - Nothing but GET and HEAD is passed on, and no request has a body.
//
// Not here: what is answered.
package serve
