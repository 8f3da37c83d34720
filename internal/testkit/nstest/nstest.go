// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/causeway-lb/causeway/internal/testkit/confine"
)

const insideVariable = "CAUSEWAY_NSTEST_INSIDE"

// Main runs the tests of a package in a new network namespace, with loopback
// up. Where that is not possible the tests still run, and those that call
// Require end there. Tests that LeaveToVM or AlsoInVM name run in the virtual
// machine after that.
func Main(m *testing.M) {
	isolated := func() int { return confine.Run(func() int { return inside(m) }, confine.Network()) }
	if confine.Inside() {
		os.Exit(isolated())
	}
	os.Exit(withVM(isolated))
}

// inside runs the tests where they are, which is in a namespace if there is one.
func inside(m *testing.M) int {
	if !confine.Inside() || os.Geteuid() != 0 {
		return m.Run()
	}
	if err := os.Setenv(insideVariable, "1"); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "nstest: bring loopback up: %v: %s\n", err, out)
		return 1
	}
	return m.Run()
}

// Require ends a test that needs the namespace, and programs, where they are
// missing.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		Unavailable(t, "network namespaces need root")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			Unavailable(t, p+" is not installed")
		}
	}
}

// Unavailable ends a test that this machine cannot run: it skips locally and
// fails where REQUIRE_KERNEL=1 promises that it can.
func Unavailable(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("REQUIRE_KERNEL") == "1" {
		t.Fatalf("REQUIRE_KERNEL=1 but %s", reason)
	}
	t.Skip(reason)
}

// Run runs a program in the test's namespace and returns what it prints.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// Loopback gives the test's namespace an address until the test ends: the
// namespace is shared by all tests of the package.
func Loopback(t testing.TB, addr string) {
	t.Helper()
	borrow(t, "address", addr, "dev", "lo")
}

// Everywhere makes every destination local to the test's namespace until the
// test ends.
func Everywhere(t testing.TB) {
	t.Helper()
	borrow(t, "route", "default", "dev", "lo")
}

// borrow has ip add something, and delete it with the test.
func borrow(t testing.TB, object string, what ...string) {
	t.Helper()
	Run(t, "ip", append([]string{object, "replace"}, what...)...)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", append([]string{object, "del"}, what...)...).CombinedOutput(); err != nil {
			t.Errorf("ip %s del %v: %v\n%s", object, what, err, out)
		}
	})
}
