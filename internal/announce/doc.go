// SPDX-License-Identifier: Apache-2.0

// Package announce elects the node that announces each LoadBalancer address, and
// drives what announces it.
//
//	API (Update)     membership      netlink
//	addresses,       who is alive,   interfaces,
//	pools, nodes     their Info      carrier
//	     |               |              |
//	     +-------> Speaker: one goroutine
//	                     |
//	        elect.Elect, for the addresses of each Kind
//	                     |  Desired: advertisements, members, Infos, links
//	   - - - - - - - Announcer - - - - - - - - - - the seam
//	                     |
//	        l2 (ARP and NDP)   ... another Kind
//	                     |  Report
//	                 reporter -> LoadBalancerAddress.status
//
// Every agent computes the same election from the same data. The API server is
// needed to learn of a new address, and for nothing else: alive, link state and the
// kernel's state go from agent to agent.
//
// An Announcer gets a set of advertisements and returns reports; it knows nothing of
// the API, and this package nothing of frames or sessions. The pool of an address
// names its Kind, Config.Announcers has the Announcer of each. Both sides of the seam
// run in the Speaker's goroutine and are told the time, so each can be tested alone.
//
// Below this package: elect (pure), nodeinfo (pure: what a node publishes), members
// (gossip, probes of nodes), links (this node's interfaces). Above it, an Announcer:
// l2 imports announce, never the reverse.
//
// Not here: which Services there are and what their policies mean for an address
// (package agent), the addresses' allocation (controllers), forwarding.
package announce
