// SPDX-License-Identifier: Apache-2.0

// Package agent is the process that runs on every node: it watches the API
// server, keeps the kernel's forwarding up to date, announces addresses and
// answers health checks.
//
//	reflectors --> Store --+--> syncer --> backend --> kernel
//	                       |       |
//	                       |       +--> conntrack, health check ports, events
//	                       +--> announcer (when the syncer says InSync)
//
// # Start and stop
//
// At start the Store is filled, the kernel's state is read, compared and
// corrected in one transaction, and only then is the agent ready and may
// announce. When it ends, forwarding stays in the kernel as it is.
//
// # Invariants
//
//   - The Store never shows a Service whose slices have not been listed yet as
//     one without endpoints: nothing is programmed before both are listed.
//   - Objects in the Store are never modified; readers may keep them.
package agent
