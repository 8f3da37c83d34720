// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

func init() { reexec.Register("init", initMain) }

// environment variable that tells a process inside the lab where the state
// directory is.
const insideVariable = "CAUSEWAY_LAB_STATE"

// Enter runs this executable again, as argv, inside the namespaces of a new
// lab, and returns its exit code. Standard streams are handed on.
//
// The lab's logs are kept, in StateDir, when the exit code is not zero and ctx
// has not ended.
//
// When ctx ends, the program inside gets SIGTERM, and after five seconds all
// of the lab is killed. It is killed at once when this process dies.
func Enter(ctx context.Context, setup Setup, argv []string) (int, error) {
	state, err := openState(setup)
	if err != nil {
		return 0, err
	}
	keep := true
	defer func() { state.close(keep) }()
	relay, err := state.startRelay()
	if err != nil {
		return 0, err
	}
	defer relay.Close()

	cmd := reexec.Command("init", argv...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"="+state.dir)
	cmd.SysProcAttr = namespaces()
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is sent when the thread ends that started the process:
		// keep it until then.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return 0, explainClone(err)
	}
	if err := state.write(cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		<-ended //nolint:errcheck // it was killed
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	})
	defer stop()
	err = <-ended
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run lab: %w", err)
	}
	code := cmd.ProcessState.ExitCode()
	keep = code != 0 && ctx.Err() == nil
	return code, nil
}

// namespaces asks for a user namespace only where it is needed: inside one,
// Pods can't run as other users.
func namespaces() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
		// A terminal's Ctrl-C goes to the program outside, which ends the lab
		// in order.
		Setsid: true,
	}
	if !privileged() {
		attributes.Cloneflags |= unix.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attributes
}

// privileged tells whether this process may make namespaces by itself.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	need := uint32(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN)
	return data[0].Effective&need == need
}

// explainClone says what keeps the kernel from making the namespaces.
func explainClone(err error) error {
	if privileged() {
		return fmt.Errorf("make namespaces: %w", err)
	}
	for _, hurdle := range []struct{ file, bad, remedy string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if value, e := os.ReadFile(hurdle.file); e == nil && strings.TrimSpace(string(value)) == hurdle.bad {
			return fmt.Errorf("make namespaces: %w: this kernel doesn't let users make user namespaces; run the lab as root, or as root once: %s", err, hurdle.remedy)
		}
	}
	return fmt.Errorf("make namespaces: %w: neither CAP_SYS_ADMIN nor user namespaces are to be had here; run the lab as root (in a container: with --privileged)", err)
}

// Inside returns the setup when this process runs inside a lab's namespaces,
// and nil outside.
func Inside() (*Setup, error) {
	dir := os.Getenv(insideVariable)
	if dir == "" {
		return nil, nil
	}
	data, err := os.ReadFile(filepath.Join(dir, setupFile))
	if err != nil {
		return nil, fmt.Errorf("read lab setup: %w", err)
	}
	setup := &Setup{}
	if err := json.Unmarshal(data, setup); err != nil {
		return nil, fmt.Errorf("decode lab setup: %w", err)
	}
	return setup, nil
}

// initMain is process 1 of the lab: it prepares the namespaces, starts the
// program proper and buries the processes that lost their parents.
func initMain() int {
	if err := prepareNamespaces(); err != nil {
		fmt.Fprintln(os.Stderr, "causeway-lab: "+explainClone(err).Error())
		return 1
	}
	cmd := &exec.Cmd{Path: reexec.Self, Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGCHLD)
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "causeway-lab: start %s: %v\n", os.Args[1], err)
		return 1
	}
	for s := range signals {
		if s != unix.SIGCHLD {
			_ = unix.Kill(cmd.Process.Pid, s.(syscall.Signal))
			continue
		}
		if code, ended := bury(cmd.Process.Pid); ended {
			return code
		}
	}
	return 0
}

// bury waits for every process that has ended. It returns the exit code of
// main if that was among them.
func bury(main int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, ended
		}
		if pid == main {
			code, ended = status.ExitStatus(), true
			if status.Signaled() {
				code = 128 + int(status.Signal())
			}
		}
	}
}

// prepareNamespaces makes /proc and /run the lab's own.
func prepareNamespaces() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	if err := os.MkdirAll("/run/lock", 0o777); err != nil {
		return err
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return netlink.LinkSetUp(loopback)
}
