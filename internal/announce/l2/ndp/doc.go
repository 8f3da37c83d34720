// SPDX-License-Identifier: Apache-2.0

// Package ndp is the part of Neighbor Discovery (RFC 4861 sections 4.3, 4.4 and
// 7.2) that resolves addresses, with duplicate address detection (RFC 4862
// section 5.4), as a wire.Protocol; and the multicast groups to which questions are
// sent.
//
//	 0      6     12    14                     54         62       78
//	+------+------+-----+----------------------+----------+--------+---------+
//	| dst  | src  |86dd | IPv6, hop limit 255  | ICMPv6   | target | options |
//	+------+------+-----+----------------------+----------+--------+---------+
//	                     next header 20         type 54
//	                     hop limit 21           checksum 56
//	                     source 22, dest 38     flags 58
//
//	type 135, source ::    probe: does any host have the target?
//	type 135               question: who has the target?
//	type 136               advertisement: the target is at the link-layer address
//
// Complete frames are built and sent with the announced address as their source.
// So the interface needs no IPv6 address of its own, and the two seconds in which
// that is tentative after the link comes up cause no delay. Frames are received on a
// packet socket: a neighbor that verifies its cache asks the announced address itself
// by unicast (RFC 4861 section 7.3.3), and the kernel does not deliver that to a raw
// ICMPv6 socket, because the address is not local.
package ndp
