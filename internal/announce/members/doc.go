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
//	relays   half-way to that limit other peers are asked to pass a ping on, and
//	         its answer back, which they cannot make up. Their word that they do
//	         not hear the peer either is a second opinion.
//
// All but the echoes goes by one UDP and TCP port (transport), which serves nodes'
// addresses alone, and those within bounds. The agents' own packets are not
// memberlist's: each is sealed for its receiver (secure.go), with keys of the two
// nodes where both have published one.
//
// What counts as life: the answer to a ping with a random number that has just left,
// directly or by way of a relay. It also says which process of the peer is the
// present one (boot) and which version of its facts holds; nothing recorded, and no
// clock, has a part in it. What gossip says of a peer, dead or alive, makes it be
// asked. Those of whom it says nothing are asked in turn.
//
// Agents of a former version are spoken to in memberlist's user messages, and are
// believed in them until they have answered in the present format, or have
// published a key. One that has no key, and whose process ends, may come back as
// such an agent: before all go back to such a version the keys are deleted.
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
