// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"golang.org/x/sys/unix"
)

// Spec describes a process and what it may see.
type Spec struct {
	// Argv is the program and its arguments. Argv[0] without a slash is looked
	// up in Env's PATH, inside the root.
	Argv []string
	// Path, if set, is executed in place of Argv[0].
	Path string
	// Env is the whole environment.
	Env []string
	// Dir is the working directory; empty means /.
	Dir string
	// Hostname of the process's own UTS namespace; empty keeps the host's.
	Hostname string
	// Network is the path of the network namespace to enter; empty stays.
	Network string
	// Root builds a file system for the process; nil keeps the host's, with
	// /proc and /run made anew.
	Root *Root

	// UID and GID to run as. They are ignored in a user namespace that doesn't
	// map them.
	UID, GID int
	// Capabilities is the bounding set by name, such as NET_ADMIN. Nil means
	// all.
	Capabilities []string
	// NoNewPrivileges sets the flag of the same name (prctl(2)).
	NoNewPrivileges bool
	// Seccomp filters the program's system calls (seccomp(2)). Empty means none.
	Seccomp []unix.SockFilter
}

// Root describes a file system.
type Root struct {
	// Mounts are made in order of their targets, parents first.
	Mounts []Mount
	// ReadOnly makes all but the mounts read-only.
	ReadOnly bool
	// WritableSysctls leaves /proc/sys writable, as for a privileged container.
	WritableSysctls bool
}

// Mount puts a file or directory of the host at a place in the root.
type Mount struct {
	// Source is a path of the host; empty means a new tmpfs.
	Source string
	// Target is absolute and clean. What lies there is hidden.
	Target   string
	ReadOnly bool
}

// Validate says what is wrong with a Spec.
func (s *Spec) Validate() error {
	if len(s.Argv) == 0 {
		return errors.New("no program given")
	}
	if s.Root == nil {
		return nil
	}
	for _, m := range s.Root.Mounts {
		if !strings.HasPrefix(m.Target, "/") || path.Clean(m.Target) != m.Target || m.Target == "/" {
			return fmt.Errorf("mount target %q: must be an absolute, clean path below /", m.Target)
		}
	}
	return nil
}

// Process is a program that Start started.
type Process struct {
	// PID in the caller's PID namespace. Inside its own the program is 1.
	PID int
	cmd *exec.Cmd
}

// Streams are a process's standard streams; nil is /dev/null. A stream that is
// no *os.File is copied by a goroutine, and Wait waits for it.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	// Files become the program's descriptors from 3 on.
	Files []*os.File
}

// The shim's own descriptors, above any that a Spec can hand on.
const (
	maxFiles = 8
	specFD   = 3 + maxFiles
	errorFD  = specFD + 1
)

// Start runs a program. It returns once the program was executed, or with the
// reason why it could not be.
func Start(spec Spec, streams Streams) (*Process, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	if len(streams.Files) > maxFiles {
		return nil, fmt.Errorf("start %s: %d files to hand on, at most %d can be", spec.Argv[0], len(streams.Files), maxFiles)
	}
	specFile, err := specFile(spec)
	if err != nil {
		return nil, err
	}
	defer specFile.Close()
	failed, report, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer failed.Close()

	cmd := reexec.Command(entry)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = streams.In, streams.Out, streams.Err
	cmd.ExtraFiles = make([]*os.File, maxFiles, maxFiles+2)
	copy(cmd.ExtraFiles, streams.Files)
	cmd.ExtraFiles = append(cmd.ExtraFiles, specFile, report)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	err = cmd.Start()
	report.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Argv[0], err)
	}
	if reason, _ := io.ReadAll(failed); len(reason) > 0 {
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %s", spec.Argv[0], reason)
	}
	return &Process{PID: cmd.Process.Pid, cmd: cmd}, nil
}

func specFile(spec Spec) (*os.File, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	fd, err := unix.MemfdCreate("spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	file := os.NewFile(uintptr(fd), "spec")
	if _, err := file.WriteAt(data, 0); err != nil {
		file.Close()
		return nil, fmt.Errorf("write spec: %w", err)
	}
	return file, nil
}

// Signal sends a signal to the program; one that has ended is no error.
func (p *Process) Signal(signal os.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Kill ends the program and everything it started, at once.
func (p *Process) Kill() { _ = p.cmd.Process.Kill() }

// Wait waits for the end and returns the exit code, 128 plus the signal's
// number for a program that a signal ended. It must be called exactly once.
func (p *Process) Wait() int {
	_ = p.cmd.Wait()
	return exitCode(p.cmd.ProcessState)
}

func exitCode(state *os.ProcessState) int {
	if state == nil {
		return 255
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
