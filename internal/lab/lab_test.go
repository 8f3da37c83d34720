// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/testkit"
)

func TestMain(m *testing.M) {
	reexec.Init()
	os.Exit(m.Run())
}

func init() {
	reexec.Register("test-outside", testOutside)
	reexec.Register("test-inside", testInside)
}

// testOutside is a program that runs a lab and gets killed.
func testOutside() int {
	code, err := Enter(context.Background(), Setup{Name: os.Args[1]}, reexec.Argv("test-inside"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// testInside fills a lab with what could be left behind: a namespace with
// interfaces, and a process that ignores signals.
func testInside() int {
	l := &Lab{}
	err := l.buildLAN()
	if err == nil {
		cmd := exec.Command("sh", "-c", "trap '' TERM INT HUP; exec sleep 1000")
		if err = l.Machine(NodeName(1)).Start(cmd); err == nil {
			fmt.Println("ready")
			err = cmd.Wait()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func needLab(t *testing.T) {
	t.Helper()
	if err := Possible(); err != nil {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Setenv("TMPDIR", t.TempDir()) // Clean must not find the user's own labs
}

// startOutside runs a lab in another process and returns that and the lab's
// process 1, when the lab is full.
func startOutside(t *testing.T, name string) (*exec.Cmd, int) {
	t.Helper()
	cmd := reexec.Command("test-outside", name)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the lab said %q, %v", line, err)
	}
	var pid int
	// The file is written while the lab starts.
	testkit.Eventually(t, 5*time.Second, "a file with the lab's process ID", func() (err error) {
		pid, err = strconv.Atoi(readPID(StateDir(name)))
		return err
	})
	return cmd, pid
}

// The kernel removes all of a lab with the program that made it, even when
// that is killed without warning.
func TestNothingIsLeftAfterSIGKILL(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("test-kill-%d", os.Getpid())
	cmd, pid := startOutside(t, name)
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(inNamespace(space)); n < 3 {
		t.Fatalf("%d processes in the lab, want process 1, the program and its child", n)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	testkit.Eventually(t, 10*time.Second, "the lab's processes have ended", func() error {
		if left := inNamespace(space); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process 1 of the lab: %v", err)
	}
	removed, _, err := Clean()
	if err != nil {
		t.Error(err)
	}
	if !strings.Contains(strings.Join(removed, " "), name) {
		t.Errorf("Clean removed %v, want %s among them", removed, name)
	}
	if _, err := os.Stat(StateDir(name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
}

// inNamespace lists the processes of a PID namespace.
func inNamespace(space string) []string {
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	var pids []string
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == space {
			pids = append(pids, strings.Split(link, "/")[2])
		}
	}
	return pids
}

func TestOneLabOfAName(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("test-name-%d", os.Getpid())
	cmd, pid := startOutside(t, name)
	_, err := Enter(t.Context(), Setup{Name: name}, reexec.Argv("test-inside"))
	if err == nil || !strings.Contains(err.Error(), "--name") || !strings.Contains(err.Error(), strconv.Itoa(pid)) {
		t.Errorf("a second lab of the name: %v, want an error that names the process and --name", err)
	}
	if _, running, err := Clean(); err != nil || !strings.Contains(strings.Join(running, " "), name) {
		t.Errorf("Clean says that %v are running (%v), want %s among them", running, err, name)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
}

// A lab that ends in order takes its directory with it.
func TestStateDirectoryGoesWithTheLab(t *testing.T) {
	needLab(t)
	name := fmt.Sprintf("test-end-%d", os.Getpid())
	code, err := Enter(t.Context(), Setup{Name: name}, reexec.Argv("nothing"))
	if code != 0 || err != nil {
		t.Fatalf("Enter = %d, %v", code, err)
	}
	if _, err := os.Stat(StateDir(name)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state directory: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	m := machine{NodeName(3), controlPlaneNumber + 3}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.13"), netip.MustParseAddr("2001:db8:0:1::13")}
	if got := m.addresses(); got[0] != want[0] || got[1] != want[1] {
		t.Errorf("addresses %v, want %v", got, want)
	}
	cidrs := m.podCIDRs()
	if cidrs[0].String() != "10.244.3.0/24" || cidrs[1].String() != "fd00:10:244:3::/64" {
		t.Errorf("Pod ranges %v", cidrs)
	}
	if got := m.mac().String(); got != "02:00:00:00:00:0d" {
		t.Errorf("MAC %s", got)
	}
}

func TestShellCommand(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	if _, err := openState(Setup{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	lab := exec.Command("sleep", "1000")
	lab.Env = append(os.Environ(), insideVariable+"="+StateDir("x"))
	if err := lab.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = lab.Process.Kill()
		_ = lab.Wait()
	}()
	dir := filepath.Join(StateDir("x"), runtimeDir)
	for path, pid := range map[string]string{
		"../pid": strconv.Itoa(lab.Process.Pid), "node-1.pid": "7",
		"node-1/default_web-abc/server": "12", "node-1/default_web-abcd/server": "13", "node-1/causeway-system_agent-x/agent": "14",
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(pid), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	node := " nsenter --target 7 --mount --uts --net --pid -- "
	for target, want := range map[string]string{
		"client":                    " nsenter --net=" + network.Dir + "/client -- id",
		"node-1":                    node + "id",
		"pod/web-abc":               node + "nsenter --target 12 ",
		"pod/web-abcd":              node + "nsenter --target 13 ",
		"pod/web":                   node + "nsenter --target 12 ",
		"pod/causeway-system/agent": node + "nsenter --target 14 ",
	} {
		got, err := ShellCommand("x", target, []string{"id"})
		if err != nil {
			t.Errorf("%s: %v", target, err)
			continue
		}
		line := strings.Join(got, " ")
		if !strings.HasPrefix(line, fmt.Sprintf("nsenter --target %d ", lab.Process.Pid)) || !strings.Contains(line, want) || !strings.HasSuffix(line, " id") {
			t.Errorf("%s: %s\nwant in it: %s", target, line, want)
		}
	}
	for target, want := range map[string]string{"node-9": "client, lan, node-1", "../node-1/x": "no machine", "pod/nobody": "no Pod nobody"} {
		if _, err := ShellCommand("x", target, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", target, err, want)
		}
	}
	if _, err := ShellCommand("y", "client", nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a lab that isn't there: %v", err)
	}

	// The number may be another process's by now.
	for _, pid := range []string{strconv.Itoa(os.Getpid()), "1", "-1", "--user", ""} {
		if err := os.WriteFile(filepath.Join(StateDir("x"), pidFile), []byte(pid), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := ShellCommand("x", "client", nil); !errors.Is(err, ErrNotRunning) {
			t.Errorf("process %q: %v, %v", pid, got, err)
		}
	}
}

// Anyone may make files beside the state directory, and the directory itself
// before there is one: nothing in it is read, called, entered or removed unless
// it is ours alone.
func TestStateOfSomebodyElse(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	for name, plant := range map[string]func(root string) error{
		"one that others can enter": func(root string) error { return errors.Join(os.Mkdir(root, 0o700), os.Chmod(root, 0o755)) },
		"one that others can write": func(root string) error { return errors.Join(os.Mkdir(root, 0o700), os.Chmod(root, 0o777)) },
		"a link":                    func(root string) error { return os.Symlink(victim, root) },
		"a file":                    func(root string) error { return os.WriteFile(root, nil, 0o600) },
		"a link in its place inside": func(root string) error {
			return errors.Join(os.Mkdir(root, 0o700), os.Symlink(victim, filepath.Join(root, "lab")))
		},
		"another user's": func(root string) error {
			if os.Getuid() != 0 {
				return os.Symlink(victim, root)
			}
			return errors.Join(os.Mkdir(root, 0o700), os.Chown(root, 12345, 12345))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			if err := os.MkdirAll(filepath.Join(victim, "lab", logsDir, "node-1", "default_p"), 0o700); err != nil {
				t.Fatal(err)
			}
			loot := filepath.Join(victim, "lab", logsDir, "node-1", "default_p", "c.log")
			if err := os.WriteFile(loot, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(victim, pidFile), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := plant(stateRoot()); err != nil {
				t.Fatal(err)
			}
			inside := strings.HasSuffix(name, "inside")
			if removed, _, err := Clean(); !inside && err == nil || len(removed) > 0 {
				t.Errorf("Clean removed %v, %v", removed, err)
			}
			if _, err := openState(Setup{}); err == nil {
				t.Error("a lab was begun there")
			}
			if got, err := ShellCommand("", "client", nil); err == nil {
				t.Errorf("entered: %v", got)
			}
			if got, err := PodLogs("", "p"); err == nil {
				t.Errorf("logs: %v", got)
			}
			if err := Control(t.Context(), "", "node-1", "off"); err == nil || !strings.Contains(err.Error(), "state directory") {
				t.Errorf("asked: %v", err)
			}
			if _, err := os.Stat(loot); err != nil {
				t.Errorf("what it led to: %v", err)
			}
		})
	}
}

func TestNamesStayInTheStateDirectory(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	for _, name := range []string{"..", ".", "a/b", "../x", "/etc"} {
		if _, err := openState(Setup{Name: name}); err == nil {
			t.Errorf("begun: %s", name)
		}
		if _, err := PodLogs(name, "p"); err == nil || !strings.Contains(err.Error(), "--name") {
			t.Errorf("logs of %s: %v", name, err)
		}
	}
}
