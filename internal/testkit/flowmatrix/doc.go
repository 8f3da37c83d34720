// SPDX-License-Identifier: Apache-2.0

// Package flowmatrix is one table of flows that every proxy mode must pass: the
// client, the address that it dials, the node's Services, and the expected result.
//
//	            client .100, stranger .101
//	                 |
//	 ----------------+------------ LAN 192.0.2.0/24, 2001:db8:0:1::/64
//	   |                        |
//	node-1 .11, .21          node-2 .12, .22   node-1 is the one under test
//	 |  |   |                 |     |
//	 A  B   X                 C     D
//
// A, B, C are endpoints, X and D only clients; HostA and HostC are processes
// of the nodes themselves. Each row is run for IPv4 and IPv6, at three
// fidelities:
//
//   - inspect.Trace follows the packet through Desired (no root);
//   - a backend's own test can trace it through what it renders (no root);
//   - Packets sends real packets through a real kernel, and checks which endpoint
//     answered and which source address it saw.
//
// Rows state the result, not the mechanism. A mode that cannot do a row does not
// pass it.
package flowmatrix
