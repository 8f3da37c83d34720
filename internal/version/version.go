// SPDX-License-Identifier: Apache-2.0

package version

import "runtime/debug"

// version is set by the linker in release builds.
var version string

// String returns the version set at build time, else the one that the Go
// toolchain recorded, else "unknown".
func String() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
