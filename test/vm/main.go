// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Exit statuses of our own, as env(1) and timeout(1) use them. A Go test binary
// exits with 0, 1 or 2.
const (
	exitTimeout = 124
	exitBroken  = 125
)

// bootTime is what the machine may take on top of the program's own time-out.
const bootTime = 90 * time.Second

func main() {
	// The machine is killed when the thread that started it ends. Only the main
	// thread is sure to live as long as the process.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	m, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		return exitBroken
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := watchParent(ctx, cancel); err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		return exitBroken
	}

	status, err := m.run(ctx)
	switch {
	case err == nil:
		return status
	case m.prepareOnly && errors.Is(err, errArchitecture):
		fmt.Fprintln(os.Stderr, "vm:", err)
		return 0 // who needs the machine learns it then
	case errors.Is(err, errTimeout):
		fmt.Fprintln(os.Stderr, "vm:", err)
		return exitTimeout
	default:
		fmt.Fprintln(os.Stderr, "vm:", err)
		return exitBroken
	}
}

// parse reads the command line: flags, the program, its arguments.
func parse(args []string) (*machine, error) {
	m := &machine{stdout: os.Stdout, stderr: os.Stderr}
	var env, programs string
	flags := flag.NewFlagSet("vm", flag.ContinueOnError)
	flags.BoolVar(&m.count, "count", false, "count instructions: one emulated CPU, one nanosecond an instruction")
	flags.IntVar(&m.cpus, "cpus", 2, "number of `CPUs`; with -count always 1")
	flags.StringVar(&m.memory, "memory", "1G", "`size` of the machine's memory")
	flags.DurationVar(&m.timeout, "timeout", 0, "give up after this `time`; 0 means the program's -test.timeout and some for booting, else 10m")
	flags.StringVar(&env, "env", "", "comma-separated `names` of environment variables to hand on")
	flags.StringVar(&programs, "programs", "", "comma-separated `names` of host programs to take along")
	flags.BoolVar(&m.prepareOnly, "prepare", false, "only make what all machines boot from, and install what that takes")
	flags.BoolVar(&m.console, "console", false, "print the kernel's messages afterwards, to standard error")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "Usage: vm [flags] PROGRAM [arguments]\n\nRuns a static PROGRAM as root in a virtual machine.")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if m.prepareOnly {
		return m, nil
	}
	if flags.NArg() == 0 {
		return nil, errors.New("name the program to run: vm [flags] PROGRAM [arguments]")
	}
	m.program, m.args = flags.Arg(0), guestArgs(flags.Args()[1:])
	m.env, m.programs = splitList(env), splitList(programs)
	if m.timeout == 0 {
		m.timeout = testTimeout(m.args)
	}
	if m.count {
		m.cpus = 1
	}
	return m, nil
}

func splitList(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// guestArgs leaves out arguments that name files of the host. go test adds
// -test.testlogfile to learn which files a result depends on; without that file
// it does not cache the result, which is right for a result from another kernel.
func guestArgs(args []string) []string {
	out := make([]string, 0, len(args))
	for _, arg := range args {
		if !strings.HasPrefix(arg, "-test.testlogfile=") {
			out = append(out, arg)
		}
	}
	return out
}

// testTimeout returns how long a machine may run for a test binary's arguments:
// longer than the binary itself allows, so that its own report arrives.
func testTimeout(args []string) time.Duration {
	for _, arg := range args {
		if value, ok := strings.CutPrefix(arg, "-test.timeout="); ok {
			if d, err := time.ParseDuration(value); err == nil && d > 0 {
				return d + bootTime
			}
		}
	}
	return 10 * time.Minute
}
