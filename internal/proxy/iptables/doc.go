// SPDX-License-Identifier: Apache-2.0

// Package iptables programs Services with iptables-restore, in its legacy or
// its nf_tables variant: for kernels and for firewalls that have nothing else.
//
//	nat PREROUTING, OUTPUT                        filter INPUT, FORWARD, OUTPUT
//	   |                                             marked reject: REJECT
//	CAUSEWAY-OUTSIDE   (policy Local only)           marked drop: DROP
//	   |
//	CAUSEWAY-SERVICES  -d 10.96.3.0/24 -------> nat POSTROUTING
//	   |                                             CAUSEWAY-MASQUERADE
//	CAUSEWAY-D-...     -d 10.96.3.7 --dport 80         hairpin, from elsewhere
//	   |               -d 10.96.3.7: reject
//	CAUSEWAY-T-...     random: DNAT to an endpoint
//
// From outside, behind CAUSEWAY-SERVICES, CAUSEWAY-CLOSED refuses what is left at
// load balancer IPs, in groups as well.
//
// # Cost
//
// A list of all frontends would be walked for every new connection. Addresses
// are grouped by all but their last eight bits, and NodePorts by 64, so that
// 10,000 Services cost two walks of a few dozen rules. A target's chain holds
// one DNAT rule an endpoint, and no chain an endpoint (except with affinity).
//
// The nat table is consulted for the first packet of a connection only. What
// refuses, refuses by a mark that is set there: the filter table's rules are
// constant, and connections that exist are never refused.
//
// # Rules as elements
//
// All rules are elements (chain, key) -> text, counted where several Services
// share one; a chain is its elements in the order of their keys. A changed
// Service's elements are rendered as they were and as they will be; the chains
// that differ are written whole, the others not at all. One restore for each
// table that changed; the kernel carries out each in one step.
//
// Rules are written exactly as iptables-save prints them, so that what is read
// back can be compared with what is wanted.
//
// # What is owned
//
// Chains that begin with CAUSEWAY- in the tables nat and filter, one jump to
// them at the top of each built-in chain, and three bits of the packet mark
// (Config.Mark), which are clear again when a packet leaves.
package iptables
