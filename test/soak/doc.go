// SPDX-License-Identifier: Apache-2.0

// Package soak holds long-running tests under load that kill processes and then
// check the invariants.
//
// Each runs briefly in "make test" and at full length with "make soak", which
// sets SOAK_OPERATIONS. The controllers are processes of their own, started from
// this test's binary, so that they can be killed with SIGKILL.
package soak
