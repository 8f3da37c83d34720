// SPDX-License-Identifier: Apache-2.0

package confine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/testkit"
)

// victim says what a program does that is to be killed.
const victim = "CONFINE_TEST_VICTIM"

func TestMain(m *testing.M) {
	if end := os.Getenv(victim); end != "" {
		os.Exit(Run(func() int { return beVictim(end) }))
	}
	os.Exit(m.Run())
}

// marked is the argument of a process that a victim starts: seconds to sleep,
// which no other process sleeps.
func marked() string { return fmt.Sprint(1_000_000 + os.Getpid()) }

// beVictim starts what a suite starts, in a process group of its own as envtest
// does, says so, and ends as it is told.
func beVictim(end string) int {
	if _, err := os.MkdirTemp("", "left-"); err != nil {
		panic(err)
	}
	cmd := exec.Command("sleep", os.Getenv("CONFINE_TEST_MARK"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	if os.Geteuid() == 0 {
		bound := make(chan error)
		go func() {
			runtime.LockOSThread()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				bound <- err
				return
			}
			path := filepath.Join(netns, "confine-"+os.Getenv("CONFINE_TEST_MARK"))
			if err := os.WriteFile(path, nil, 0o444); err != nil {
				bound <- err
				return
			}
			bound <- unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
		if err := <-bound; err != nil {
			panic(err)
		}
	}
	fmt.Println("started")
	switch end {
	case "panic":
		go panic("as asked")
	case "exit":
		return 7
	}
	time.Sleep(time.Hour) // not select: the runtime ends a program that waits for nothing
	return 1
}

// processes are those of the machine that were started with the mark, by ID.
func processes(t *testing.T, mark string) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err == nil && slices.Contains(strings.Split(string(text), "\x00"), mark) {
			id, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			out = append(out, id)
		}
	}
	return out
}

// children are those of all threads of a process, by ID: any of them may have
// started one.
func children(t *testing.T, of int) []int {
	t.Helper()
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/children", of))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range strings.Fields(string(text)) {
			id, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, id)
		}
	}
	return out
}

// However a program ends, nothing that it started is left.
func TestNothingOutlivesAProgram(t *testing.T) {
	for _, tc := range []struct {
		name, end string
		kill      func(t *testing.T, outer *os.Process) error
		code      int
		// litter allows for temporary files: nobody is left to remove them.
		litter bool
	}{
		{name: "exit", end: "exit", code: 7},
		{name: "panic", end: "panic", code: 2},
		{name: "outer killed", kill: func(_ *testing.T, outer *os.Process) error { return outer.Kill() }, code: -1, litter: true},
		{name: "inner killed", kill: func(t *testing.T, outer *os.Process) error {
			inner := children(t, outer.Pid)
			if len(inner) != 1 {
				t.Fatalf("children of the outer process: %v, want one", inner)
			}
			return syscall.Kill(inner[0], syscall.SIGKILL)
		}, code: 1},
		{name: "Ctrl-C", kill: func(_ *testing.T, outer *os.Process) error { return syscall.Kill(-outer.Pid, syscall.SIGINT) }, code: 2},
		{name: "SIGTERM", kill: func(_ *testing.T, outer *os.Process) error { return outer.Signal(syscall.SIGTERM) }, code: 2},
		{name: "time-out of go test", kill: func(_ *testing.T, outer *os.Process) error { return outer.Signal(syscall.SIGQUIT) }, code: 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mark, temporary := marked(), t.TempDir()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), victim+"="+tc.end, "CONFINE_TEST_MARK="+mark, "TMPDIR="+temporary)
			if tc.end == "" {
				cmd.Env = append(cmd.Env, victim+"=wait")
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			var said bytes.Buffer
			cmd.Stderr = &said
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for _, id := range processes(t, mark) {
					_ = syscall.Kill(id, syscall.SIGKILL)
				}
			})
			started := make([]byte, 8)
			if _, err := out.Read(started); err != nil || !strings.HasPrefix(string(started), "started") {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				t.Fatalf("the program said %q, %v\n%s", started, err, &said)
			}
			if strings.Contains(said.String(), "refuses namespaces") {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				if os.Getenv("REQUIRE_KERNEL") == "1" {
					t.Fatalf("REQUIRE_KERNEL=1 but %s", &said)
				}
				t.Skip(said.String())
			}
			if tc.kill != nil {
				if err := tc.kill(t, cmd.Process); err != nil {
					t.Error(err)
				}
			}
			hung := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait() // its code is looked at below
			hung.Stop()
			if code := cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit code %d, want %d\n%s", code, tc.code, &said)
			}
			// The kernel kills after the one process that it waits for has ended.
			testkit.Eventually(t, 20*time.Second, "no process is left", func() error {
				if left := processes(t, mark); len(left) > 0 {
					return fmt.Errorf("processes %v", left)
				}
				return nil
			})
			path := filepath.Join(netns, "confine-"+mark)
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is left", path)
				_ = unix.Unmount(path, unix.MNT_DETACH)
				_ = os.Remove(path)
			}
			if files, _ := os.ReadDir(temporary); len(files) > 0 && !tc.litter {
				t.Errorf("%d temporary files are left, such as %s", len(files), files[0].Name())
			}
		})
	}
}
