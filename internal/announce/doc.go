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
// Every agent computes the same election from the same facts; what it hears on the
// link decides what it does then (package claim). The API server is needed only to
// learn of a new address: liveness, link state and the kernel's state go from agent
// to agent.
//
// Invariants:
//
//   - A node starts to answer only while it is eligible (elect.Eligibility) and after
//     the link was silent or the former announcer handed over.
//   - A node that stops goes on answering until it has heard its successor: if its
//     agent exits or it may no longer announce, at most for claim's Release; if other
//     nodes are only preferred to it (elect.Grade: cordoned, out of sync), until
//     one of them has taken over.
//   - A node whose agent died while its kernel runs is replaced quietly: the
//     successor answers questions and announces nothing, so that clients stay
//     with the node that has their connections.
//   - Before a node answers for an address that another agent announced, it starts
//     to forward the segments of TCP connections that only that agent's node knows
//     to that node (Strays), which forwards to the one before it. Only during
//     strayLinger can this be a circle.
//   - The agents' frames carry a seal (wire.Seal), by which agents recognize each
//     other where their gossip does not reach. A frame without a seal is not an
//     agent's, whatever its hardware address; and a node yields only to the answer
//     to a question that it has just asked.
//
// Non-goals: the Services and what their policies mean for an address (package
// agent), the allocation of addresses (controllers), forwarding.
package announce
