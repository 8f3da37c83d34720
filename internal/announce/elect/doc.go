// SPDX-License-Identifier: Apache-2.0

// Package elect decides which node announces which LoadBalancer address. It is
// pure: every agent computes the same result from the same input, so that failover
// needs no coordination (lease, lock, leader).
//
//	nodes, addresses -> Eligibility  (eligible nodes, and reasons against the others)
//	                 -> Elect  (the announcer, and its successors)
//
// Preference is a rendezvous hash (Thaler and Ravishankar, 1998): each pair of
// address and node has a score, and an address prefers the nodes by descending
// score. Removing a node moves that node's addresses only.
//
// Evenness is a bound on the load (Mirrokni, Thorup and Zadimoghaddam, 2016):
// no node takes more than LoadFactor times its fair share while another may
// take the address. Addresses and bounded nodes are matched by deferred
// acceptance (Gale and Shapley, 1962), both sides preferring the higher score.
// Its result is unique, so that neither the order of the input nor the history
// matters.
//
// There are two kinds of reasons against a node. A node that cannot announce, or was
// told not to (Reason of Eligibility), is excluded. A node with a worse Grade than
// others comes after them, and announces when they cannot.
//
// Invariants:
//
//   - Equal sets of nodes and addresses give equal results, in any order.
//   - The announcer is eligible. There is one exactly when any node is.
//   - Arguments are neither changed nor kept.
//
// Non-goals: which agents are alive (package members), what happens on the wire
// when two nodes compute different results (package claim).
package elect
