// SPDX-License-Identifier: Apache-2.0

// Package netlink is the one netlink socket, and the framing of messages, that the
// packages below it share:
//
//	netlink             sockets, message headers
//	netlink/attributes  the codec of attributes
//	netlink/nft         nf_tables: transactions, reading back, notifications
//	netlink/nft/expr    expressions of rules
//	netlink/ipvs        IPVS
//	netlink/conntrack   connection tracking: listing and deleting flows
//
// They know the kernel's protocols and no Services. Nothing here imports a proxy
// mode; arch's test holds them to it.
//
// # Beside libraries
//
// Links, addresses, routes and rules are few: vishvananda/netlink does those. It
// also finds the generic netlink family of IPVS. A socket of its own is here for
// what the agent's large transactions need: one datagram made of several buffers
// without a copy (a transaction of 10,000 Services is some 50 MB), one receive buffer
// for all answers, and a bound on the wait for them.
package netlink
