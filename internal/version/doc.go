// SPDX-License-Identifier: Apache-2.0

// Package version tells which Causeway this is.
package version
