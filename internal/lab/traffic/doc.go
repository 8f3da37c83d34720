// SPDX-License-Identifier: Apache-2.0

// Package traffic sends requests to the demonstration's HTTP servers from a
// machine of the lab and records every answer and every gap.
//
// A Generator is an open loop: a request starts at every interval, whether or not
// earlier ones have ended, each on a connection of its own, so that an outage shows
// in full. A Holder keeps connections open and uses them repeatedly: it detects the
// loss of established connections.
package traffic
