// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/testkit"
)

// TestMain makes the test binary serve as three programs: the tests, the runner
// under test, and what runs in the machine.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("IN_TEST_VM") != "":
		os.Exit(guest(os.Args[1:]))
	case os.Getenv("VM_TEST_RUNNER") != "":
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// guest is the program in the machine.
func guest(args []string) int {
	switch args[0] {
	case "exit":
		status, _ := strconv.Atoi(args[1])
		return status
	case "show":
		fmt.Printf("args=%q env=%q\n", args[1:], os.Getenv("VM_TEST_VALUE"))
		data, err := os.ReadFile("testdata/note.txt")
		fmt.Printf("testdata=%q error=%v uid=%d\n", data, err, os.Getuid())
		out, err := exec.Command("ip", "link", "add", "d0", "type", "dummy").CombinedOutput()
		fmt.Printf("dummy=%q error=%v\n", out, err)
	case "run":
		out, err := exec.Command(args[1], args[2:]...).CombinedOutput()
		fmt.Printf("%s error=%v\n", out, err)
	case "hang":
		fmt.Println("hanging")
		time.Sleep(time.Hour)
	case "panic":
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case "loop":
		began, sum := time.Now(), 0
		for i := range 5_000_000 {
			sum += i ^ sum
		}
		fmt.Println(time.Since(began).Nanoseconds(), sum)
	}
	return 0
}

// runner prepares the program under test, in a process of its own.
func runner(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkStatic(self); err != nil {
		t.Fatal(err)
	}
	if len(missingPackages()) > 0 && os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") == "" {
		t.Skipf("packages missing: %v", missingPackages())
	}
	at := slices.Index(args, "PROGRAM")
	args = append(append(slices.Clone(args[:at]), self), args[at+1:]...)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "VM_TEST_RUNNER=1", "VM_TEST_VALUE=it's $HOME \"here\"")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	return cmd, &stdout, &stderr
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func TestMachine(t *testing.T) {
	for _, tc := range []struct {
		name   string
		args   []string
		status int
		stdout []string
		stderr []string
	}{
		{
			name: "exit status", args: []string{"PROGRAM", "exit", "7"}, status: 7,
		},
		{
			name: "arguments, environment, files, root, modules",
			args: []string{"-env", "VM_TEST_VALUE", "PROGRAM", "show", "a b", "it's", "$x;", "-test.testlogfile=/x", ""},
			stdout: []string{
				`args=["a b" "it's" "$x;" ""] env="it's $HOME \"here\""` + "\n",
				`testdata="for the machine\n" error=<nil> uid=0` + "\n",
				`dummy="" error=<nil>` + "\n",
			},
		},
		{
			name: "time-out", args: []string{"-timeout", "10s", "PROGRAM", "hang"}, status: exitTimeout,
			stderr: []string{"time-out: the machine did not end within 10s"},
		},
		{
			name: "kernel panic", args: []string{"PROGRAM", "panic"}, status: exitBroken,
			stderr: []string{"Kernel panic - not syncing: sysrq triggered crash", "ended without an exit status"},
		},
		{
			name: "host program", args: []string{"-programs", "nft", "PROGRAM", "run", "nft", "list", "tables"},
			stdout: []string{" error=<nil>\n"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cmd, stdout, stderr := runner(t, tc.args...)
			if got := exitStatus(cmd.Run()); got != tc.status {
				t.Errorf("status %d, want %d", got, tc.status)
			}
			for _, want := range tc.stdout {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("stdout lacks %q", want)
				}
			}
			for _, want := range tc.stderr {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("stderr lacks %q", want)
				}
			}
			if t.Failed() {
				t.Logf("stdout:\n%s\nstderr:\n%s", stdout, stderr)
			}
		})
	}
}

// A benchmark's figures must not depend on how busy the host is.
func TestInstructionCount(t *testing.T) {
	var seen []float64
	for range 2 {
		cmd, stdout, stderr := runner(t, "-count", "PROGRAM", "loop")
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		var ns float64
		if _, err := fmt.Sscan(stdout.String(), &ns); err != nil {
			t.Fatalf("read %q: %v", stdout, err)
		}
		seen = append(seen, ns)
	}
	if ratio := seen[0] / seen[1]; ratio < 0.95 || ratio > 1.05 {
		t.Errorf("the same work took %.0f and %.0f instructions", seen[0], seen[1])
	}
}

// However the runner or its parent ends, no machine stays.
func TestNoOrphan(t *testing.T) {
	for _, tc := range []struct {
		name   string
		signal syscall.Signal
		parent bool // signal the parent instead of the runner
	}{
		{name: "runner gets SIGTERM", signal: syscall.SIGTERM},
		{name: "runner gets SIGKILL", signal: syscall.SIGKILL},
		{name: "parent gets SIGKILL", signal: syscall.SIGKILL, parent: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			// A file that the machine holds open while it lives tells its end.
			temporary := t.TempDir()
			cmd, _, stderr := runner(t, "PROGRAM", "hang")
			cmd.Env = append(cmd.Env, "TMPDIR="+temporary)
			if tc.parent {
				inner := exec.Command("sh", append([]string{"-c", `"$@"; exit $?`, "sh", cmd.Path}, cmd.Args[1:]...)...)
				inner.Env, inner.Stderr = cmd.Env, stderr
				cmd = inner
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			pid := waitForMachine(t, temporary)
			if err := cmd.Process.Signal(tc.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			t.Cleanup(func() {
				if t.Failed() {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			})
			testkit.EventuallyTrue(t, time.Minute, "the machine has ended as its runner", func() bool {
				return syscall.Kill(pid, 0) != nil || zombie(pid)
			})
		})
	}
}

// waitForMachine returns the process that boots from an initramfs below dir.
func waitForMachine(t *testing.T, dir string) int {
	t.Helper()
	pid := 0
	testkit.EventuallyTrue(t, 2*time.Minute, "a machine is started", func() bool {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, at := range lines {
			line, _ := os.ReadFile(at)
			if bytes.HasPrefix(line, []byte("qemu-system")) && bytes.Contains(line, []byte(dir)) {
				pid, _ = strconv.Atoi(filepath.Base(filepath.Dir(at)))
			}
		}
		return pid != 0
	})
	return pid
}

func zombie(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return bytes.Contains(stat, []byte(") Z "))
}

func TestParse(t *testing.T) {
	m, err := parse([]string{"-count", "-cpus=4", "-env", "A,B", "/p", "-test.timeout=2m", "-test.testlogfile=x", "-test.v"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"-test.timeout=2m", "-test.v"}, m.args); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	if m.cpus != 1 || m.timeout != 2*time.Minute+bootTime || m.program != "/p" {
		t.Errorf("got %+v", m)
	}
	if diff := cmp.Diff([]string{"A", "B"}, m.env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if _, err := parse(nil); err == nil {
		t.Error("no program is an error")
	}
}
