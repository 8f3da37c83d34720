// SPDX-License-Identifier: Apache-2.0

// Package traffic sends requests to the demonstration's HTTP servers from a
// machine of the lab and keeps account of every answer and every gap.
//
// A Generator is an open loop: a request starts at every interval whatever
// became of those before, each over a connection of its own, so that an outage
// shows in full. A Holder keeps connections open and uses them over and over:
// what it loses are established connections.
package traffic
