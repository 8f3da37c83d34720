// SPDX-License-Identifier: Apache-2.0

// Package httpserver serves HTTP to untrusted clients.
//
//	net.Listener -> Limit -> [TLS] -> New (timeouts) -> [Authorized] -> [ReadOnly] -> handler
//
// A client that reaches a port may connect as often as it likes, send a byte a
// minute and never read a response. Invariants:
//
//   - No connection lasts longer than the timeouts of Limits for a request's header,
//     for the whole request, for the response and for idling, whatever the client
//     sends or does not send.
//   - Limits bounds the connections, in total and from each source. A source that
//     opens too many loses its own oldest, so that a probe from elsewhere still gets
//     its response.
//   - HTTP/2 is off: a stream costs its sender next to nothing, and no client here
//     needs it.
//
// ReadOnly is for servers that only report: it accepts GET and HEAD, without a body.
// Authorized admits only clients whose token the API server knows and whom its
// authorizer allows to get a path, as Kubernetes' own components do for their metrics.
//
// Non-goals: the content of responses.
package httpserver
