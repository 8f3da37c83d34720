// SPDX-License-Identifier: Apache-2.0

// Package arp is the Address Resolution Protocol (RFC 826) for Ethernet and
// IPv4, with the probes and announcements of RFC 5227, as a wire.Protocol.
//
//	 0      6     12    14                                          42
//	+------+------+-----+----+----+--+--+----+------+-----+------+-----+
//	| dst  | src  |0806 |0001|0800| 6| 4| op | SHA  | SPA | THA  | TPA |
//	+------+------+-----+----+----+--+--+----+------+-----+------+-----+
//	                     14   16   18 19  20   22     28    32     38
//
//	op 1, SPA 0.0.0.0      probe: does any host have TPA? (RFC 5227 2.1.1)
//	op 1, SPA == TPA       announcement: I have SPA (RFC 5227 2.3)
//	op 1                   question: who has TPA? asked by SPA
//	op 2                   reply: SPA is at SHA
//
// Linux ignores a gratuitous reply that arrives within a second (locktime) of the
// neighbor entry's last update, unless its THA equals its SHA; it always accepts a
// gratuitous request. Some other systems accept only replies. So an announcement
// consists of both.
package arp
