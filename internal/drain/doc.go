// SPDX-License-Identifier: Apache-2.0

// Package drain has a TCP listener take no new connections before it is closed.
//
// Closing a listener resets the connections that the kernel has taken and nobody has
// accepted yet. So first the kernel drops new ones (Refuse), then those that wait
// are accepted, and then the listener is closed. A client whose first segment is
// dropped repeats it after a second, and finds who serves then.
//
// Not here: how long connections that are open may last.
package drain
