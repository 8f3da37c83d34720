// SPDX-License-Identifier: Apache-2.0

// Package backendtest is the contract of package backend as tests. Every
// proxy mode runs them against the kernel, in addition to the flow matrix. A Story
// describes to a mode's fake how the kernel fails.
package backendtest
