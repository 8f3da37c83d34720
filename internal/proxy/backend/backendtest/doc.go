// SPDX-License-Identifier: Apache-2.0

// Package backendtest is the contract of package backend as tests. Every
// proxy mode runs them against the kernel, beside the flow table. A Story is what
// modes tell their fakes of kernels that fail.
package backendtest
