// SPDX-License-Identifier: Apache-2.0

// Package members knows which nodes' agents are alive, without the API server.
//
//	gossip   hashicorp/memberlist (SWIM with Lifeguard), encrypted: who there is,
//	         who is dead, and each node's facts. Settings are moderate; it
//	         finds every death within about 1.5 s.
//	probes   every ProbeInterval to the few peers that Watch names: the
//	         announcers that this node would succeed. Finds their death in
//	         about SilenceLimit.
//	echoes   ICMP, from the second ping that is not answered on: an agent that is
//	         starved is silent, its kernel is not. Silence of both is death at
//	         once; where the kernel answers nothing is lost yet, and the agent has
//	         more time.
//	relays   half-way to that limit other peers are asked to try as well. Their
//	         yes keeps the peer alive, their no is a second opinion.
//
// All but the echoes travels in memberlist's encrypted packets on one UDP and TCP
// port.
//
// What counts as life: any direct message, an answer that a relay got, or, for
// peers that are not watched, gossip's word. A peer that gossip holds dead but
// that is heard directly is alive, and is joined again at once.
//
// A probe that was not answered counts only while this process runs on time:
// silence is summed up in ticks of at most ProbeInterval, and echoes are read in
// the tick itself, so that a starved agent does not hold its peers dead. Where the
// peer's kernel answers or cannot be asked (a firewall), the limit grows with the
// peer's round trips and with how late timers are on busy cores, which agents tell
// each other.
//
// Keys: packets are encrypted with the first key, and decrypted with any. A new
// first key is only accepted at first and used after KeyGrace, when the other
// agents have seen it too.
//
// Not here: what a death means (packages elect, claim and announce).
package members
