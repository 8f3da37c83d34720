// SPDX-License-Identifier: Apache-2.0

// Package nftables programs Services with nf_tables. The rule set is a
// constant program; Services are data in its maps.
//
//	         prerouting                    output
//	             |                            |
//	    source ranges: drop          source ranges: drop
//	       /           \                      |
//	 Pods of          all                     |
//	this node        others                   |
//	    |               |                     |
//	    |           outside                   |
//	    |     services-outside -> class       |
//	    |     services -> class               |
//	    |     load balancer IP, no such port -> reject
//	    |               | (no match)          |
//	    +-----------> inside <----------------+
//	             services -> class -> endpoints-<n>
//	             ClusterIP, no such port -> reject
//	             local address: 0.0.0.0 . port -> class -> node-port-endpoints-<n>
//
//	endpoints-<n>: dnat to <frontend> . (random mod n) map @endpoints
//
//	         postrouting, if the destination was translated
//	             |
//	         masquerade: see package model
//
// # Classes
//
// A frontend's class, the value of its element in services, says how it picks
// an endpoint: the number of slots and the affinity time-out; 0 rejects. A
// verdict map leads from the class to its chain. That step exists because the
// kernel validates every element of a verdict map at each commit that touches
// it: a map of frontends straight to verdicts would make each change cost the
// number of all Services.
//
// There is one chain a class in use. So the number of chains and rules
// depends on how many different numbers of endpoints and time-outs there are,
// never on the number of Services.
//
// # Affinity
//
// A client is remembered with the group of its frontend, which all frontends of a
// Service port share, and the number of its endpoint, which means the same to all
// of them. A frontend of policy Local, which has fewer endpoints, may not know the
// number; it picks one of its own, and the others follow.
//
// # The mark
//
// A value that one map yields and the next is keyed by passes through the
// packet's mark, which nft 1.0.6 can print; it crashes on a plain register
// here. The mark is put back within the same rule, so nobody else ever sees
// another one than their own.
//
// # Transactions
//
// A Sync is one transaction over both families. A changed Service's elements
// are rendered as they were and as they will be; the difference is the
// transaction. A full Sync (at start, after an error, when somebody else
// touched the tables, on a timer) reads everything back first and repairs
// what differs, without a gap in forwarding. A table that does not exist yet
// is filled by several transactions, and hooked up by the last.
//
// The kernel tells which elements somebody else touched, and lists of large sets
// are dear. So if all that was heard is about elements, and few, these alone
// are asked for and put back.
//
// A change that the kernel refuses is followed by a full Sync. What is refused
// then is nobody else's doing: the kernel's answer names the element, and the
// Services that have it are set aside, as the kernel has them, until the rest
// is accepted. Each is then tried alone, so that one that was only suspected
// (before Linux 6.0 the answer names a message of up to 400 elements) is
// programmed a moment later.
//
// Which form the kernel gives to a rule is asked of the kernel: the rules are
// made once in a table "causeway-reference" without hooks, read and deleted.
// So a process that takes over writes only what is not right.
//
// # Limits
//
// Needs Linux 5.9 or later: reject in prerouting. The tables "ip causeway"
// and "ip6 causeway" and, for a moment, "causeway-reference" are this
// package's alone; it touches no other.
package nftables
