// SPDX-License-Identifier: Apache-2.0

// Package claim decides which node answers for one address on one link. The
// election selects a node; this package checks the link before it acts on that, and
// keeps checking. It is pure: time and frames come in, frames go out through Port.
//
//	        elected                silence
//	Idle ------------> Probing --------------------> Announcing
//	  ^                 |   |  ours holds it            |    |
//	  |   a conflicting |   +----------> Backup <-------+    | no longer eligible
//	  |     host has it v                 | silence, or      v
//	  |              Conflict             | time to preempt  Releasing
//	  |                 | retry           +---> Probing        |
//	  +-----------------+-----------------------------<--------+ other heard, or timeout
//
// The link is the fence. Elections differ while agents do not hear each other
// (gossip blocked, partition), but every node on the link hears the announcements:
//
//   - A node that is to take over an address asks the link first. If the old
//     announcer answers, it is alive, whatever membership reports, and the new node
//     leaves the address to it while it outranks the new node.
//   - A live holder may have to stop and not know it yet, because news reaches the
//     nodes at different times. The new node waits for Timing's PreemptDelay, so
//     that the holder does not defend the address and clients move only once.
//   - Of two nodes that announce, the outranked one stops as soon as it hears the
//     other; the other announces again so that the outranked node hears it and the
//     clients come back.
//     A node that membership or the link considers silent must be answered until it
//     has answered a question: a node that announces and does not hear would attract
//     the clients. For the same reason, nodes without contact are looked for with
//     questions, not with announcements.
//   - A node that is no longer elected goes on answering until it has heard the
//     elected node's announcement: some node always answers. So does a node to which others
//     are preferred, however long that takes (Reluctant); only a node that may not
//     answer at all stops after Timing's Release.
//
// Rank is elect.Outranks, which does not depend on any node's view.
//
// Where a switch suppresses ARP and NDP, silence of the link is not enough: probes
// and announcements do not reach every node, and a switch may answer for a node from
// its cache. Therefore
//
//   - after an answer with a node's hardware address that its agent has not sent, the
//     node itself is asked, by unicast; from a node that membership considers dead
//     such an answer does not count, at the latest after maxStale;
//   - a node that takes over an address informs the former holder by unicast;
//   - a node that goes on announcing asks the elected node at intervals.
//
// A conflicting host that only probes does not use the address: this node only
// checks once more. One that uses it is never fought (RFC 5227): before
// the first announcement the address is left to it; afterwards one announcement is
// sent in each DefendInterval (section 2.4, (c)). Both cases are reported.
//
// Non-goals: which senders are agents, and alive (package l2).
package claim
