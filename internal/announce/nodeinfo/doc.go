// SPDX-License-Identifier: Apache-2.0

// Package nodeinfo is what a node publishes to the agents of the other nodes about
// itself in addition to what the API server has: whether its kernel matches the Services,
// whether its agent is shutting down, and its interfaces. Package members carries
// the encoding, package elect uses it.
//
// It is pure and imports elect alone.
package nodeinfo
