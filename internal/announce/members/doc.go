// SPDX-License-Identifier: Apache-2.0

// Package members detects which nodes' agents are alive, without the API server.
//
//	gossip   hashicorp/memberlist (SWIM with Lifeguard), encrypted: the members,
//	         which of them are dead, and each node's Info. Settings are moderate;
//	         it detects every death within about 1.5 s.
//	probes   every ProbeInterval to the few peers in Watch: the announcers that this
//	         node would succeed. They detect a death within about SilenceLimit.
//	echoes   ICMP, after the second unanswered ping: a starved agent is silent, its
//	         kernel is not. Silence of both is death immediately; while the kernel
//	         answers, no traffic is lost, and the agent has more time.
//	relays   halfway to that limit other peers are asked to forward a ping, and its
//	         answer back, which they cannot forge. Their report that they do not hear
//	         the peer either is a second opinion.
//
// All except the echoes use one UDP and TCP port (transport), which accepts only
// nodes' addresses, within limits. The agents' own packets are separate from
// memberlist's: each is sealed for its receiver (secure.go), with keys of the two
// nodes if both have published one.
//
// Proof of life is the answer to a ping with a fresh random number, directly or
// through a relay. It also states which process of the peer is the current one
// (boot) and which version of its Info is valid; recorded packets and clocks have no
// influence. What gossip reports about a peer, dead or alive, only triggers a ping.
// Peers about which it reports nothing are pinged in turn.
//
// Agents of an earlier version are addressed with memberlist's user messages, and are
// believed in them until they have answered in the current format or published a key.
// An agent without a key, whose process exits, may come back as such an agent: before
// a downgrade of all agents to such a version the keys are deleted.
//
// An unanswered probe counts only while this process runs on time: silence is summed
// up in ticks of at most ProbeInterval, and echoes are read in the tick itself, so
// that a starved agent does not consider its peers dead. If the peer's kernel answers
// or cannot be asked (a firewall), the limit grows with the peer's round-trip times
// and with the delay of timers on busy cores, which agents report to each other.
//
// Keys: packets are encrypted with the first key, and decrypted with any. A new
// first key is at first only accepted, and used after KeyGrace, when the other
// agents have it too.
//
// Non-goals: the consequences of a death (packages elect, claim and announce).
package members
