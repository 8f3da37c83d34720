// SPDX-License-Identifier: Apache-2.0

// Package agent is the process that runs on every node: it watches the API
// server, programs the kernel's forwarding, announces addresses and answers health
// checks.
//
//	reflectors --> Store --+--> syncer --> backend --> kernel
//	                       |       |
//	                       |       +--> conntrack, health check ports, events
//	                       +--> announcer (when the syncer says InSync)
//
// # Start and stop
//
// At start the agent fills the Store and reads, compares and corrects the kernel's
// state in one transaction. Only then it is ready and may announce. When it exits,
// forwarding stays in the kernel unchanged.
//
// # Invariants
//
//   - The Store never shows a Service whose slices have not been listed yet as
//     one without endpoints: programming starts after both are listed.
//   - Objects in the Store are never modified; readers may keep them.
package agent
