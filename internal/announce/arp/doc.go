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
//	op 1, SPA 0.0.0.0      probe: does anybody have TPA? (RFC 5227 2.1.1)
//	op 1, SPA == TPA       announcement: I have SPA (RFC 5227 2.3)
//	op 1                   question: who has TPA? the asker is SPA
//	op 2                   reply: SPA is at SHA
//
// Linux neighbours ignore a gratuitous reply that comes within a second
// (locktime) of the entry's last update, unless its THA is its own SHA; they
// always take a gratuitous request. Some other systems take only replies. So
// an announcement here is both.
package arp
