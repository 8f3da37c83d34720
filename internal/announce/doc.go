// SPDX-License-Identifier: Apache-2.0

// Package announce makes exactly one node answer ARP and NDP for each
// LoadBalancer address. Nothing is bound to an interface, so nothing can be left
// behind.
//
//	API (Update)     membership      netlink        link
//	addresses,       who is alive,   interfaces,    claims and probes
//	pools, nodes     their facts     carrier        of others
//	     |               |              |               |
//	     +-------> Speaker: one goroutine <-------------+
//	                |            |
//	            elect.Elect   claim.Machine for each (address, interface)
//	                             |
//	                wire.Conn (arp, ndp): filter, answers, announcements
//	                             |
//	                           Report -> LoadBalancerAddress.status
//
// Every agent computes the same election from the same facts; what it does about
// it is decided by what it hears on the link (package claim). The API server is
// needed to learn of a new address, and for nothing else: alive, link state and
// the kernel's state go from agent to agent.
//
// Invariants:
//
//   - A node starts to answer only while it is eligible (elect.Judge) and after
//     the link was silent or one of ours handed over.
//   - A node that stops by itself goes on answering until it has heard its
//     successor: if its agent ends or it may not announce any more, for claim's
//     Release at most; if others are only preferred to it (elect.Grade: cordoned,
//     out of sync), for as long as none of them has come.
//   - A node whose agent died while its kernel lives is succeeded quietly: the
//     successor answers questions and announces nothing, so that clients stay
//     with the node that has their connections.
//   - Before a node answers for an address that another of ours announced, the
//     segments of TCP connections that only that one knows are passed on to it
//     (Strays), and from there to the one before it: not in circles, but for
//     strayLinger.
//   - Our own frames carry a seal (wire.Seal), by which our agents know each other
//     where their gossip does not reach. One without is no agent's, whatever
//     hardware address it has; and nobody yields but to the answer to a question
//     that it has just asked.
//
// Not here: which Services there are and what their policies mean for an address
// (package agent), the addresses' allocation (controllers), forwarding.
package announce
