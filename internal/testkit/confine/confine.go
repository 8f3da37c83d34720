// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is set in the environment of the confined process and of what it
// starts.
const inside = "CAUSEWAY_CONFINED"

// netns is where network namespaces are bound, by the lab and by ip(8).
const netns = "/run/netns"

// An Option changes how a program is confined.
type Option func(*exec.Cmd)

// Network gives the program a network namespace of its own, in which nothing is
// set up. It has no effect without root.
func Network() Option {
	return func(cmd *exec.Cmd) {
		if os.Geteuid() == 0 {
			cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
		}
	}
}

// Inside reports whether this process is confined.
func Inside() bool { return os.Getenv(inside) != "" }

// Run runs this program again, with the same arguments, environment and
// standard streams, where all that it starts ends with it, and returns its exit
// code. There, Run calls main and returns its result. It belongs into main or
// TestMain, before anything is started.
func Run(main func() int, options ...Option) int {
	if Inside() {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "confine:", err)
			return 1
		}
		return main()
	}
	temporary, err := os.MkdirTemp("", "causeway-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "confine:", err)
		return 1
	}
	defer os.RemoveAll(temporary)
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: os.Args, Env: append(os.Environ(), inside+"=1", "TMPDIR="+temporary)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID,
		Pdeathsig:  unix.SIGKILL,
		Setpgid:    true, // a terminal's Ctrl-C comes by way of this process, once
	}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	} else {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	for _, option := range options {
		option(cmd)
	}
	return wait(cmd, main)
}

// wait runs cmd to its end. If it cannot be started, main runs in this process.
func wait(cmd *exec.Cmd, main func() int) int {
	// The kernel sends Pdeathsig when the thread ends that started the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		fmt.Fprintln(os.Stderr, "confine: what this program starts may outlive it, as the kernel refuses namespaces:", err)
		return main()
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended already
		}
	}()
	err := cmd.Wait()
	signal.Stop(signals)
	close(signals)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "confine:", err)
		return 1
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code
	}
	fmt.Fprintln(os.Stderr, "confine:", cmd.ProcessState)
	return 1
}

// enter gives the confined process a /proc that shows its PID namespace, and an
// empty directory of network namespaces.
func enter() error {
	if os.Getpid() != 1 || os.Geteuid() != 0 {
		return nil // started by a confined process, or without root
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.MkdirAll(netns, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("netns", netns, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return fmt.Errorf("mount %s: %w", netns, err)
	}
	return nil
}
