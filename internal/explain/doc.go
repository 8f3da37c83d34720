// SPDX-License-Identifier: Apache-2.0

// Package explain states in plain sentences why a Service does not work, and what
// to do. All its information is from the API, with the user's own permissions.
//
//	Read ──> Facts ──> Explain (pure) ──> Report ──> WriteTo
//
// It follows a packet: the Service has an address; its Pods are ready and in an
// EndpointSlice; for a LoadBalancer Service an address is assigned, recorded and
// announced by a live node; the agents run. It repeats what controllers and agents
// report in conditions instead of deriving it again; it checks what they cannot
// report because they do not run or have not noticed.
//
// Objects that the user may not read are listed in a note and left out.
//
// Non-goals: nodes' kernels and packets, and Causeway's own health beyond one
// Service.
package explain
