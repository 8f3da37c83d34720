// SPDX-License-Identifier: Apache-2.0

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
