// SPDX-License-Identifier: Apache-2.0

// Package l2 is the announce.Announcer that makes exactly one node answer ARP and
// NDP for each address. Nothing is bound to an interface, so nothing can be left
// behind.
//
//	announce.Desired (Apply)              frames (wire.Conn: arp, ndp)
//	        |                                    |
//	     cluster: names, addresses,             heard
//	     interfaces of the nodes                 |
//	        |                                    |
//	  Announcer: clock and select; Step does what is due
//	     |           |            |           |         |
//	   ports     placement     liveness    handover   report
//	  sockets   claim.Want    probes on   segments   -> Reports
//	 interfaces for each      the link    of open
//	 families   entry                     connections
//	                 |
//	            claim.Machine for each (address, port)
//
// Each of these is a struct of its own whose inputs are arguments; time is one of
// them. placement and handover take a cluster, liveness a cluster and the ports.
// They return what they want done and call nothing that is above them.
//
// Invariants:
//
//   - A node starts to answer only while it is eligible (elect.Eligibility) and
//     after the link was silent or one of ours handed over.
//   - A node that stops by itself goes on answering until it has heard its
//     successor: if its agent ends or it may no longer announce, for claim's
//     Release at most; if others are only preferred to it (elect.Grade: cordoned,
//     out of sync), for as long as none of them has come.
//   - A node whose agent died while its kernel lives is succeeded without gratuitous
//     announcements: the successor answers questions and announces nothing, so that
//     clients stay with the node that has their connections.
//   - Before a node answers for an address that another of ours announced, the
//     segments of TCP connections that only that one knows are passed on to it
//     (Handover), and from there to the one before it: not in circles, but for
//     loopTime.
//   - A node that receives no frame at all, while other nodes hear each other on the
//     link, replaces no announcer, and is not eligible there (elect.MarkDeaf). It goes
//     on asking. The silence of the link alone excludes no node.
//   - Our own frames carry a seal (wire.Seal), by which our agents know each other
//     where their gossip does not reach. One without is no agent's, whatever
//     hardware address it has; and no node yields but to the answer to a question
//     that it has just asked.
//
// Not here: which node is elected or alive (packages elect and members), what becomes of
// the reports (package announce).
package l2
