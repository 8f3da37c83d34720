// SPDX-License-Identifier: Apache-2.0

// Package drain has a TCP listener take no new connections before it is closed, and
// an HTTP server end without cutting anyone off.
//
// Closing a listener resets the connections that the kernel has taken and nobody has
// accepted yet. So first the kernel drops new ones (Refuse), then those that wait
// are accepted, and then the listener is closed. A client whose first segment is
// dropped repeats it after a second, and finds who serves then.
//
// Serve does that for an HTTP server, and waits for the request of every connection:
//
//	ctx ends -> Refuse -> accept until none waits -> close the listener
//	         -> answer what is sent, with "Connection: close" -> close the rest
//
// A client that sends a second request over a connection just when it is closed gets
// no answer; HTTP/1.1 has clients expect that of connections that were idle (RFC 9112
// section 9.5).
//
// Not here: how long connections that are open may last.
package drain
