// SPDX-License-Identifier: Apache-2.0

// Package replica runs the controller as processes of a test or benchmark, started
// from its own binary, so that they can be killed like the real one, and serves their
// webhooks with envtest's certificates.
package replica
