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
// Only masquerading (NAT) is used as forwarding method, the one that can
// translate ports and needs nothing of the real servers.
package ipvs
