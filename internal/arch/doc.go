// SPDX-License-Identifier: Apache-2.0

// Package arch holds the tests that keep the source tree's shape: which
// package may import which. It has no code of its own.
package arch
