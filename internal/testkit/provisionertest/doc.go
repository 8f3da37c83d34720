// SPDX-License-Identifier: Apache-2.0

// Package provisionertest is the test suite that every provisioner passes: what the
// LoadBalancer controller relies on, whatever stands behind it.
//
//	Subject.Start ──> provisioner ──> the world outside (records, an HAProxy)
//	      ▲                                   │ stays
//	      └── Cluster: what the Services' ────┘
//	          statuses show, also to a provisioner that was started again
//
// Invariants: a case never looks behind the interface; a provisioner without a
// capability is checked for refusing, not skipped.
//
// Non-goals: whether packets arrive. Each provisioner's own tests show that.
package provisionertest
