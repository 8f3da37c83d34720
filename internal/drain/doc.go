// SPDX-License-Identifier: Apache-2.0

// Package drain shuts down TCP listeners and HTTP servers without cutting off
// clients.
//
// Closing a listener resets the connections in its accept queue: the kernel has
// established them, but the program has not accepted them yet. So first the kernel
// drops new connections (Refuse), then the queue is accepted, and then the listener
// is closed. A client whose SYN is dropped retransmits it after a second, and reaches
// the server that runs then.
//
// Serve does this for an HTTP server, and waits for a request on every connection:
//
//	ctx ends -> Refuse -> accept until the queue is empty -> close the listener
//	         -> answer requests with "Connection: close" -> close the rest
//
// A client that sends a second request on a connection just when it is closed gets
// no answer; HTTP/1.1 makes clients expect this on idle connections (RFC 9112
// section 9.5).
//
// Non-goals: limits on how long open connections may last.
package drain
