// SPDX-License-Identifier: Apache-2.0

// Package ipvs speaks the generic netlink protocol of the Linux Virtual
// Server (linux/ip_vs.h): virtual servers, their real servers, and nothing
// else of it.
//
//	Conn.Do(changes)   many changes in one datagram, one answer for each
//	Conn.Read          all virtual servers, each with its real servers
//
// The kernel carries out changes one by one, in order; there are no
// transactions. A refused change does not stop the ones behind it.
//
// # Beside moby/ipvs
//
// That library (v1.1.0) sends each change alone and awaits its answer, and takes a list
// as it comes. Here 128 changes share a datagram, each with an answer of its own, and a
// list that another process changed meanwhile is read again.
//
// # Non-goals
//
// Only masquerading (NAT) is used as forwarding method, the one that can
// translate ports and needs nothing of the real servers. It imports nothing of this
// module but netlink and netlink/attributes.
package ipvs
