// SPDX-License-Identifier: Apache-2.0

// Package reexec makes one executable several programs.
//
// The lab starts itself again as the first process of a namespace, as a node's
// kubelet, and as the shim that becomes a container. A binary that links the lab,
// a command or a test, is therefore complete: nothing else needs to be installed.
//
//	func init() { reexec.Register("node", nodeMain) }
//	func main() { reexec.Init(); ... }
//	reexec.Command("node", "--flag") // runs nodeMain in a new process
//
// Invariant: Init runs first in main, or in TestMain, before flags are parsed.
package reexec
