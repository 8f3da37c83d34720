// SPDX-License-Identifier: Apache-2.0

// Package nstest gives tests a network namespace of their own. Only tests
// import it.
package nstest

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Unavailable ends a test that this machine cannot run: it skips locally and
// fails where REQUIRE_KERNEL=1 promises that it can.
func Unavailable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_KERNEL") == "1" {
		t.Fatalf("REQUIRE_KERNEL=1 but %s", reason)
	}
	t.Skip(reason)
}

// Enter moves the test's goroutine, locked to its thread, into a new network
// namespace with loopback up. The thread ends with the goroutine, and the
// namespace with it. Programs that the goroutine starts run in it too.
func Enter(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Unavailable(t, "network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread must not be reused
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		Unavailable(t, "unshare of the network namespace: "+err.Error())
	}
	Run(t, "ip", "link", "set", "lo", "up")
}

// Run runs a program in the current namespace and returns its output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
