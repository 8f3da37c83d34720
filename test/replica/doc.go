// SPDX-License-Identifier: Apache-2.0

// Package replica runs the controller as processes of a test or benchmark, made
// from its own binary, so that they can be killed like the real one and their
// webhooks served with the certificates of envtest.
package replica
