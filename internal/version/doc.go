// SPDX-License-Identifier: Apache-2.0

// Package version is the version of this build.
package version
