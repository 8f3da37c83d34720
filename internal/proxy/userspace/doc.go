// SPDX-License-Identifier: Apache-2.0

// Package userspace serves Services by a proxy in the agent: for kernels
// without address translation and without connection tracking, and as the
// simplest mode to reason about.
//
//	from others: prerouting            from this node: output
//	   |                                   |
//	   |  source ranges: drop              |  source ranges: drop
//	   |  no endpoints: reject or drop     |  the same
//	   |  ClusterIP, no such port: reject  |  the same
//	   |  load balancer IP, no such port:  |
//	   |    reject, but not for Pods here  |  mark it: routed to lo
//	   |                                   |
//	   |                              prerouting
//	   +----------------+------------------+
//	                    |
//	     mark, tproxy to 127.0.0.1:P        P is one of two: inside or outside
//	                    |                   (package model)
//	     rule: our mark -> table 51807: local default dev lo
//	                    |
//	     the agent accepts; its socket's own address is the frontend
//	                    |
//	     round robin, affinity -> connects to the endpoint, splices
//
// # Why transparent proxying
//
// The proxy has eight sockets, however many Services there are: one for each
// family, view and protocol, on the loopback address. Listening on each
// frontend instead would cost a socket each, and worse: Linux lets nobody
// listen on all addresses at a port where somebody listens on one. The node's
// own programs could not start where a Service uses the same port, nor could
// the Service be served where they were first.
//
// A frontend is an element of a map in nf_tables, as in mode nftables; so
// what must be refused or dropped is so before a connection is accepted, and
// nothing is ever local but what has our mark: the kernel answers ARP for no
// address of a Service.
//
// For the same reason answers by UDP leave through a raw socket: a socket
// bound to the frontend would take its port.
// ICMP errors about such answers are delivered to this node, though the address is
// not its own: by them that socket learns how large an IPv6 answer may be. IPv4
// answers leave without DF, and routers fragment them.
//
// # Order among modes
//
// The chains stand right behind destination NAT (priority -90). Connections
// that another mode translates are never taken, so they go on while a node
// changes to this mode. The first packet of a connection that nobody
// translates is taken. IPVS translates later: what a client sends that IPVS knows is
// captured, and IPVS takes it all the same. The proxy's mark must not lead that back to
// this node, so it gets another on the way out, by which it is masqueraded unless
// connection tracking knows better (the tables causeway-translated).
//
// # What ends with what
//
// A TCP connection goes on when its endpoint is removed from the Service, and
// when the Service goes, as long as both ends keep it. (Of connections that
// this node itself began the proxy keeps those whose Service is still there.)
// With Config.ResetTCP both ends are reset when the endpoint is gone, or when the
// client is in no source range any more. A UDP flow ends then in any case, and when
// idle. What a frontend has that goes altogether stays a second more, in case it is made
// again, under whatever name.
//
// Connections end with the agent: they are reset, never closed as if all had
// been said. While no agent runs, first packets are dropped and not refused,
// so that whoever connects meanwhile reaches the next one by the repetition
// that TCP does by itself. Where that uses another mode, the tables yield first (Yield):
// a SYN of this node is dropped ahead of connection tracking's taking note of it.
//
// # Limits
//
// Endpoints see the node's address, never the client's. SCTP is not carried;
// its Services get a Problem. A TCP connection costs six file descriptors;
// past the limit new ones are reset, counted, and the Service gets a Problem.
//
// # What is owned
//
// The tables "ip" and "ip6" causeway-userspace and causeway-translated, routing
// table 51807, the rule that leads there, and the packet marks 0x5b000001 and 0x5b000002.
// Needs Linux 5.9: reject in prerouting.
package userspace
