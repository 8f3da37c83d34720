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

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// prefix marks argv[0] of a process that is a registered entry. It also makes
// such processes recognisable in ps.
const prefix = "causeway-lab:"

var entries = map[string]func() int{}

// Register adds an entry; main is what the process does, its result the exit
// code. It must be called from an init function and panics on a second use of
// a name.
func Register(name string, main func() int) {
	if _, taken := entries[name]; taken {
		panic("reexec: " + name + " registered twice")
	}
	entries[name] = main
}

// Init turns this process into the entry named by argv[0], and then doesn't
// return. For any other argv[0] it does nothing.
func Init() {
	name, ok := strings.CutPrefix(os.Args[0], prefix)
	if !ok {
		return
	}
	main, ok := entries[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: not an entry of this program\n", os.Args[0])
		os.Exit(127)
	}
	os.Exit(main())
}

// Argv returns the argument vector that makes this executable the named entry.
func Argv(name string, args ...string) []string {
	return append([]string{prefix + name}, args...)
}

// Self is the path of this executable, good even after the file was deleted,
// as `go run` does.
const Self = "/proc/self/exe"

// Command prepares a process that runs the named entry.
func Command(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: Self, Args: Argv(name, args...)}
}
