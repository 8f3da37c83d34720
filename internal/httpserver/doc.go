// SPDX-License-Identifier: Apache-2.0

// Package httpserver serves HTTP to hosts that nobody has vouched for.
//
//	net.Listener -> Limit -> [TLS] -> New (times) -> [Authorized] -> [ReadOnly] -> handler
//
// Whoever reaches a port may connect as often as he likes, send a byte a minute
// and never read an answer. Invariants:
//
//   - No connection lasts longer than the times of Limits for a request's header,
//     for the whole request, for the answer and for idling, whatever the client
//     sends or leaves unsent.
//   - There are at most as many connections as Limits says, in all and of each
//     source. Who opens too many ends his own, so that a probe from elsewhere still
//     gets its answer.
//   - HTTP/2 is off: a stream costs its sender next to nothing, and nobody who asks
//     here needs it.
//
// ReadOnly is for servers that only tell: GET and HEAD, and requests without a
// body. Authorized lets those alone in whose token the API server knows and whom its
// authorizer lets get a path, as Kubernetes' own components do with their metrics.
//
// Not here: what is answered.
package httpserver
