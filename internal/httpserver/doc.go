// SPDX-License-Identifier: Apache-2.0

// Package httpserver serves HTTP to hosts that nobody has vouched for.
//
// Whoever reaches a port may connect as often as he likes, send a byte a minute
// and never read an answer. So every server has a time for a request's header,
// for the whole request, for the answer and for idling; a bound on connections,
// in all and for each client address, over which new ones are closed at once;
// and a small bound on headers. HTTP/2 is off: a stream costs its sender next to
// nothing, and nobody who asks here needs it.
//
// ReadOnly is for servers that only tell: GET and HEAD, and no body is read.
// Authorized lets those alone in whose token the API server knows and whom its
// authorizer lets get the path, as Kubernetes' own components do with their
// metrics.
package httpserver
