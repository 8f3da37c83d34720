// SPDX-License-Identifier: Apache-2.0

// Package wire carries address resolution on one interface: a packet socket
// that hears and answers for a set of addresses none of which is bound to the
// interface. A Protocol (packages arp and ndp) interprets frames; the socket, its
// kernel filter, answers and rate limits are here.
//
//	frame -> kernel filter (our addresses only) -> Protocol.Parse -> Message
//	                                                 |
//	         Question or Probe for an address        |    everything else
//	         that is answered: reply immediately  <--+--> Config.Hear
//
// Replies are sent from the receiving goroutine, so that an answer never waits
// for the rest of the agent.
//
// The filter is classic BPF, which has no hash tables: the set of addresses is
// compiled into a binary search over ranges. It may admit more than the set (never
// less); Parse's results are checked against the set again.
//
// Non-goals: which node should answer (package claim), joining multicast groups
// (package ndp).
package wire
