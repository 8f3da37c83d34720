// SPDX-License-Identifier: Apache-2.0

// Package arch holds the tests of the source tree's structure: which package may
// import which, how large packages and structs may get, and what docs/architecture.md
// names. It has no code of its own.
package arch
