// SPDX-License-Identifier: Apache-2.0

// Package explain says in plain sentences why a Service does not work, and what
// to do. Everything it says it has from the API, with the rights of whoever asks.
//
//	Read ──> Facts ──> Explain (pure) ──> Report ──> WriteTo
//
// It follows a packet: the Service has an address; Pods stand behind it, ready
// and in an EndpointSlice; for a LoadBalancer Service an address is given, recorded
// and announced by a node that is alive; the agents run. What controllers and
// agents say in conditions is repeated, not guessed again; what they cannot say,
// because they do not run or have not noticed, is found by looking.
//
// What may not be read is told as a note and left out.
//
// Non-goals: nodes' kernels and packets, and Causeway's own health beyond what
// concerns one Service.
package explain
