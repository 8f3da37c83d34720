// SPDX-License-Identifier: Apache-2.0

// Package claim settles who answers for one address on one link. The election
// says who should; this package looks at the link before it believes that, and
// goes on looking. It is pure: time and frames come in, frames go out through
// Port.
//
//	        elected                 silence
//	Idle ------------> Probing --------------------> Announcing
//	  ^                 |   |  ours holds it            |    |
//	  |      a stranger |   +----------> Held <---------+    | no longer eligible
//	  |        has it   v                 | silence, or      v
//	  |              Conflict             | time to go back  Releasing
//	  |                 | retry           +---> Probing        |
//	  +-----------------+-----------------------------<--------+ claim heard, or time-out
//
// The link is the fence. Elections differ while agents do not hear each other
// (gossip blocked, partition), but whoever shares the link hears the claims:
//
//   - A node that is to take an address over asks the link first. If the old
//     announcer answers, it is alive, whatever membership thinks, and is left
//     alone while it outranks the newcomer.
//   - A holder that is alive may have to go and not know it yet: the news reach the
//     nodes at different times. It is left alone for Timing's Courtesy, so that it
//     does not defend the address and clients move once.
//   - Of two that announce, the one that is outranked stops as soon as it hears
//     the other; the other announces again so that it does hear, and so that the
//     clients come back.
//     Until one that membership or the link holds silent has answered a question, it
//     has to be answered itself: a node that announces and does not hear would draw
//     the clients to itself. For the same reason nodes that are out of contact are
//     looked for by questions, not by announcements.
//   - A node that is no longer the elected one goes on answering until it has
//     heard the elected one's claim: there is always somebody who answers. So does
//     one to which others are preferred, however long that takes (Reluctant); only
//     one that may not answer at all stops after Timing's Release.
//
// Rank is elect.Outranks, which does not depend on anybody's view.
//
// Where a switch suppresses ARP and NDP, silence of the link is not enough: what is
// asked by a probe or told by an announcement does not get everywhere, and a
// switch may answer for a node from memory. So an answer with a node's hardware
// address that its agent has not sent has the node asked itself, by unicast; for a
// node that membership holds dead it counts for nothing, at the latest after
// maxStale; who takes an address over tells the former holder by unicast; and who
// goes on announcing asks the elected one now and then.
//
// A stranger that probes does not use the address: it only has this node look once
// more. A stranger (RFC 5227) is never fought: before the first announcement the
// address is left to it; afterwards one announcement is made in each
// DefendInterval (section 2.4, (c)), and in both cases it is reported.
//
// Not here: which of the senders are ours, and alive (package announce).
package claim
