// SPDX-License-Identifier: Apache-2.0

// Package ipvs programs Services with the Linux Virtual Server.
//
//	prerouting, output (nf_tables)                       local-in, local-out (IPVS)
//	  source ranges: drop                                  virtual server by mark
//	  no endpoints: reject or drop                           or by address and port
//	  ClusterIP, no such port: reject                            |
//	  mark the packet  ---------- local route ---------->   real server (NAT)
//	                              of its own table               |
//	                                                      postrouting (nf_tables)
//	                                                        masquerade by mark
//
// # Virtual servers
//
// A frontend with an address is a virtual server of that address and port, as
// every IPVS user knows them. A mark stands for what an address can't say: a
// NodePort, which is every local address at once, and the inside view of a
// frontend whose two views differ (package model). Marked virtual servers
// follow no change of the node's addresses, and there is one a NodePort
// however many addresses the node has.
//
// # Addresses
//
// IPVS sees only packets that the node takes for its own. Each address gets a
// local route on the dummy interface causeway-ipvs, in a routing table of its
// own. It is not added to an interface: then it would be the source of other
// connections, NodePorts would answer on it, and the kernel would send it in
// ARP requests, all of which are known faults elsewhere. The kernel still
// answers ARP for local routes, so a table of the arp family keeps quiet; only
// the announcer answers, who sees the packets earlier. IPv6 does not answer
// for what is on no interface.
//
// # Removal
//
// A real server that is wanted no more gets weight 0 and is deleted when its
// connections have ended, at the latest after Config.DrainTimeout. Those in state
// SYN_SENT have ended, though the kernel counts them as active. A UDP one is
// deleted at once, so that a client that goes on sending from one port is
// scheduled anew and not sent into the void. Affinity never leads to a real
// server with weight 0 (expire_quiescent_template), a new connection from a
// reused port does not follow an old one there (conn_reuse_mode), and the hashing
// schedulers mh and sh take another one (dh can't: there they go at once). Who
// goes on with a connection that IPVS has forgotten is reset by the tables.
//
// So it is with a whole virtual server whose connections still get to it: where
// the two views of a frontend become the same, or cease to be, as when a
// policy changes, and where a NodePort or one port of an address goes.
//
// # Order
//
// What packets are led to exists before they are led there: virtual servers,
// then the tables, then routes; and the other way round for removal. Ahead of all
// are the tables of replies, which have connections tracked: what this node itself
// sends gets to a virtual server without any table.
//
// # Replies
//
// IPVS finds the connection of a reply by client and endpoint. A client that uses
// one port for two frontends of an endpoint, as happens by chance, would get the
// replies of both from the frontend that it dialled last, and the other connection
// would fall silent. Connection tracking tells them apart: replies
// leave from what was dialled (the tables causeway-ipvs-replies). These stay while another
// mode takes over, until the connections have ended.
//
// # Firewalls
//
// Packets pass the hook that iptables calls INPUT before IPVS sees them. Where its
// filter table is in use, one rule there accepts them by their mark, so that a
// node that drops what it does not know still serves.
//
// # What is owned
//
// The rule just named; the tables "ip", "ip6" and "arp" causeway-ipvs, "ip" and "ip6" causeway-ipvs-replies; the interface causeway-ipvs
// and the routing table of Config.RouteTable with its two rules; virtual servers
// with the flag that ipvsadm calls flag-3, and those that are in the way of a
// Service. Others may have virtual servers of their own beside them.
//
// # Limits
//
// Affinity of a marked virtual server (NodePorts, and the inside view of policy
// Local) is a consistent hash of the client's address without a time-out, as the
// kernel's persistence does not translate ports there. Each virtual server has its
// own persistence, so affinity is not one for all frontends of a Service port.
//
// Two connections of one client port that meet at an endpoint share a state in IPVS:
// when one of them is reset by its endpoint, the other is forgotten once it is idle for
// ten seconds. For SCTP the address of replies is made right, and not the port, as
// Linux before 5.11 cannot compute the checksum.
//
// IPVS takes the repeated SYN of a client that dialled before there was a virtual
// server, but connection tracking, whose entry says otherwise, does not know the
// connection: it is reset once that entry is deleted, a moment later.
//
// The local route takes all of an address. So nobody on the node, nor its Pods,
// reaches another host whose own address is a load balancer IP at a port that no
// Service has.
//
// Marks of translated packets are overwritten, and are 0 when they leave. IPVS
// sends no packet from the loopback range anywhere else: NodePorts at 127.0.0.1
// are nf_tables' alone. Needs Linux 5.9: reject in prerouting, and IPVS that
// reuses connections without a second's delay.
package ipvs
