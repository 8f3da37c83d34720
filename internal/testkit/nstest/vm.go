// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// forVMVariable names the file in which tests are noted that are to run in the
// virtual machine when those on this kernel have ended: names, and absolute
// paths of programs that they need there.
const forVMVariable = "CAUSEWAY_NSTEST_FOR_VM"

// longForm is the variable that asks package modes for many changes.
const longForm = "CAUSEWAY_MODE_CHANGES"

// vmPrograms are those of the host that tests in the virtual machine call.
const vmPrograms = "ip,nft,ipset,iptables,ip6tables,iptables-save,ip6tables-save,iptables-restore,ip6tables-restore," +
	"iptables-nft,iptables-nft-save,iptables-nft-restore,ip6tables-nft-save,ip6tables-nft-restore," +
	"iptables-legacy,iptables-legacy-save,iptables-legacy-restore,ip6tables-legacy-save,ip6tables-legacy-restore"

// InVM says whether the test runs in the virtual machine of test/vm.
func InVM() bool { return os.Getenv("IN_TEST_VM") != "" }

// LeaveToVM ends a test here for a reason that lies in this kernel: the virtual
// machine runs it, and decides whether the package passes. With -short nothing
// does. In the machine, which is there to have it all, it is a failure.
func LeaveToVM(t testing.TB, reason string) {
	t.Helper()
	if InVM() {
		t.Fatal("in the virtual machine: " + reason)
	}
	if testing.Short() {
		t.Skip(reason + ", and -short starts no virtual machine")
	}
	forVM(t)
	t.Skip(reason + ": left to the virtual machine")
}

// AlsoInVM has the test run in the virtual machine too, on its older kernel.
func AlsoInVM(t testing.TB) {
	t.Helper()
	if !InVM() && !testing.Short() {
		forVM(t)
	}
}

// forVM notes a test for the virtual machine, whole if it is a part of one.
func forVM(t testing.TB) {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	note(t, name)
}

// TakeToVM has the virtual machine hold one more program of this machine, at the
// same path.
func TakeToVM(t testing.TB, path string) {
	t.Helper()
	if !InVM() && !testing.Short() {
		note(t, path)
	}
}

func note(t testing.TB, what string) {
	t.Helper()
	list := os.Getenv(forVMVariable)
	if list == "" {
		t.Fatal("the package's TestMain does not call nstest.Main")
	}
	f, err := os.OpenFile(list, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, what); err != nil {
		t.Fatal(err)
	}
}

// withVM runs the tests, and then those in the virtual machine that were left
// to it. It returns the exit status of the whole.
func withVM(tests func() int) int {
	if InVM() {
		return tests()
	}
	dir, err := os.MkdirTemp("", "nstest-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	list := filepath.Join(dir, "for-vm")
	if err := errors.Join(os.WriteFile(list, nil, 0o644), os.Setenv(forVMVariable, list)); err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	if status := tests(); status != 0 {
		return status
	}
	noted, err := os.ReadFile(list)
	var names, programs []string
	for _, what := range slices.Compact(slices.Sorted(slices.Values(strings.Fields(string(noted))))) {
		if filepath.IsAbs(what) {
			programs = append(programs, what)
		} else {
			names = append(names, what)
		}
	}
	if err == nil && len(names) > 0 {
		err = inVM(context.Background(), dir, names, programs)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "--- FAIL: in the virtual machine: %v\nFAIL\n", err)
		return 1
	}
	return 0
}

// inVM runs these tests of this program in the virtual machine, with these
// programs besides the usual. Each of them must say that it passed: one that is
// not found, or skipped, did not.
func inVM(ctx context.Context, dir string, names, programs []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	runner := filepath.Join(dir, "vm")
	build := exec.CommandContext(ctx, "go", "build", "-o", runner, "github.com/causeway-lb/causeway/test/vm")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the runner of the virtual machine: %w\n%s", err, out)
	}
	programs = append([]string{vmPrograms}, programs...)
	args := []string{"-env", longForm, "-programs", strings.Join(programs, ","), self, "-test.v", "-test.run=^(" + strings.Join(names, "|") + ")$"}
	loud := false
	for _, arg := range os.Args[1:] {
		loud = loud || arg == "-test.v" || strings.HasPrefix(arg, "-test.v=") && arg != "-test.v=false"
		if strings.HasPrefix(arg, "-test.timeout=") || strings.HasPrefix(arg, "-test.run=") && strings.Contains(arg, "/") {
			args = append(args, arg)
		}
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, runner, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	for _, name := range names {
		if err == nil && !strings.Contains(out.String(), "--- PASS: "+name+" ") {
			err = fmt.Errorf("%s was not run", name)
		}
	}
	if err != nil || loud {
		_, _ = os.Stdout.Write(out.Bytes())
	}
	if err == nil {
		fmt.Println("passed in the virtual machine:", strings.Join(names, ", "))
	}
	return err
}
