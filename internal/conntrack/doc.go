// SPDX-License-Identifier: Apache-2.0

// Package conntrack ends flows that connection tracking would keep sending to
// where nobody serves them any more.
//
//	Services before, after --> PlanAll (pure) --> Scope ... --> Table.Clean --> kernel
//
// A connection's translation is decided once, by its first packet. TCP, once
// established, ends when its endpoint goes; a UDP client that sends now and then keeps its entry,
// and with it the dead endpoint, for ever. SCTP retries for minutes. So when
// an endpoint stops serving, or a frontend comes or goes, the entries of that
// frontend that lead elsewhere than to a serving endpoint are deleted; the
// client's next packet is decided anew. Flows to endpoints that still serve
// stay, also if new flows go to others.
//
// What is looked at is the frontend and not the Service: all changes of one Sync
// are taken together before anything is deleted. So a frontend that another Service
// takes over keeps its flows to endpoints that both have. One that goes altogether
// keeps its flows for a second more, in case it is made again under another name.
//
// # Clients
//
// Whom a rule would not let in any more does not go on either. Flows end of clients
// that source ranges do not contain, when these are narrowed or first set; of clients that
// a traffic policy drops since it became Local, to endpoints of other nodes; and at
// addresses of this node where NodePorts do not answer since the agent was
// started anew.
//
// # Cost
//
// The kernel does the search: a dump is filtered by protocol, destination and
// port (CTA_FILTER, Linux 5.8; an older kernel ignores the filter and returns
// everything, so every entry is checked here again). It is read as it comes, and
// deletions are sent many at a time while it goes on: what is held in memory does
// not grow with the number of flows. Deletions name the entry exactly; nothing is ever
// flushed.
//
// # TCP
//
// A SYN that was sent to an endpoint in the moment when it went is never
// answered, and its entry would lead each repetition there too, until the client
// gives up. So TCP entries without an answer are deleted like those of UDP: the
// client's next SYN, after a second, goes to an endpoint that serves, or is
// refused if there is none. So it is with a SYN that came before its frontend was
// programmed, when the node started or the Service was new: nothing translates its
// repetitions as long as its entry stays, and each of them prolongs that.
//
// If asked, TCP flows to endpoints that went are ended too, and those of clients
// that are not admitted any more, and their clients
// told: when the endpoint is in no slice any more, or its node is dead. One that
// only gets no new connections, as it ends or is not ready, may finish those it
// has. Nobody knows the sequence numbers that a reset must have, but the
// client's next segment does: before its entry is deleted, the flow is noted
// in a set of the tables "ip causeway-resets" and "ip6 causeway-resets", and a
// segment of a noted flow that connection tracking does not know any more is
// answered with a reset. A client that sends nothing notices with its next
// keepalive probe. A SYN of the same ports begins a new connection, which is
// tracked and so never reset. Notes are forgotten after resetTimeout.
//
// # Handover
//
// When a LoadBalancer address moves to another node, so do the segments of its
// open connections, which only the former announcer's connection tracking knows
// how to translate. So a TCP segment for such an address that is no SYN, and of
// no connection that this node knows, is passed on to that node as it is, and
// translated there; the answers go to the client directly. The tables
// "ip causeway-handover" and "ip6 causeway-handover" say which node that is. What that
// one does not know it passes on in turn to the one before it. The TTL is lowered,
// so that where two nodes pass to each other, as they do for a moment when an
// address moves back, nothing goes round for long.
//
// ICMP errors about what the former announcer has sent to a client come to the
// new one as well: a router whose link takes no packet of that size, or that
// knows no way. They go the same way, told by the source of the packet that
// they quote; without them a large answer over a path with a smaller MTU would
// never arrive. So it is for UDP, of which the former announcer has answers on
// their way.
//
// The chains of both stand right behind connection tracking, before those of any
// mode: mode ipvs would refuse a segment of a connection that it does not know.
//
// # Non-goals
//
// Nothing happens to flows that were not made by a frontend of a Service.
package conntrack
