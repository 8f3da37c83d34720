// SPDX-License-Identifier: Apache-2.0

// Package reexec lets one executable be several programs.
//
// The lab starts itself again as the first process of a namespace, as a node's
// kubelet, as the shim that turns into a container. Whoever links the lab, the
// causeway command or a test binary, is thereby complete: nothing else needs to
// be installed.
//
//	func init() { reexec.Register("node", nodeMain) }
//	func main() { reexec.Init(); ... }
//	reexec.Command("node", "--flag") // runs nodeMain in a new process
//
// Invariant: Init runs first in main, or in TestMain, before flags are parsed.
package reexec
