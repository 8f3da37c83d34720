// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var errTimeout = errors.New("time-out")

// machine is one run of one program.
type machine struct {
	program  string
	args     []string
	env      []string // names of variables to hand on
	programs []string // names of host programs to take along
	cpus     int
	memory   string
	count    bool
	console  bool
	timeout  time.Duration
	kvm      bool // use the processor instead of emulating one
	// prepareOnly makes the image and runs nothing.
	prepareOnly bool

	stdout, stderr io.Writer
}

// run boots the machine, waits for its end, and returns the program's exit
// status. errTimeout is returned when that took too long.
func (m *machine) run(ctx context.Context) (int, error) {
	if !m.prepareOnly {
		if err := checkStatic(m.program); err != nil {
			return 0, err
		}
	}
	if runtime.GOARCH != "amd64" {
		return 0, fmt.Errorf("%w: it is there for amd64, not for %s", errArchitecture, runtime.GOARCH)
	}
	if err := ensurePrograms(ctx, m.stderr); err != nil {
		return 0, err
	}
	image, err := prepare(ctx, m.stderr)
	if err != nil || m.prepareOnly {
		return 0, err
	}
	m.kvm = image.kvm && !m.count
	return m.boot(ctx, image)
}

// boot runs the program on a prepared image.
func (m *machine) boot(ctx context.Context, image image) (int, error) {
	dir, err := os.MkdirTemp("", "causeway-vm-")
	if err != nil {
		return 0, fmt.Errorf("make directory: %w", err)
	}
	defer os.RemoveAll(dir)
	initramfs := filepath.Join(dir, "initramfs")
	if err := m.writeInitramfs(initramfs, image.initramfs); err != nil {
		return 0, fmt.Errorf("make initramfs: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout, fmt.Errorf("%w: the machine did not end within %v", errTimeout, m.timeout))
	defer cancel()
	return m.result(ctx, dir, m.qemu(ctx, dir, image.kernel, initramfs))
}

// writeInitramfs appends to the image's archive what this run adds.
func (m *machine) writeInitramfs(to, base string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	in, err := os.Open(base)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	a := newArchive(out)
	if err := a.file("/vm/program", 0o755, m.program); err != nil {
		return err
	}
	a.bytes("/vm/command", 0o644, m.script())
	if _, err := os.Stat("testdata"); err == nil {
		if err := a.tree("/vm/tree/testdata", "testdata"); err != nil {
			return err
		}
	}
	added := map[string]bool{}
	for _, name := range m.programs {
		if err := addProgram(a, added, name); err != nil {
			return err
		}
	}
	return errors.Join(a.close(), out.Close())
}

// script returns the shell script that becomes the program.
func (m *machine) script() []byte {
	var b strings.Builder
	for _, name := range m.env {
		if value, ok := os.LookupEnv(name); ok {
			fmt.Fprintf(&b, "export %s=%s\n", name, quote(value))
		}
	}
	b.WriteString("exec /vm/program")
	for _, arg := range m.args {
		b.WriteString(" " + quote(arg))
	}
	b.WriteString("\n")
	return []byte(b.String())
}

// quote makes a string one word for a POSIX shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// qemu runs the machine until it powers off or ctx ends.
func (m *machine) qemu(ctx context.Context, dir, kernel, initramfs string) error {
	args := append(m.accelerator(),
		"-M", "q35", "-m", m.memory, "-smp", strconv.Itoa(m.cpus),
		"-nographic", "-nodefaults", "-no-reboot", "-monitor", "none", "-net", "none",
		"-serial", "file:"+filepath.Join(dir, "console.log"),
		"-serial", "stdio",
		"-serial", "file:"+filepath.Join(dir, "status"),
		"-kernel", kernel, "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=4 panic=-1 random.trust_cpu=on mitigations=off tsc=reliable")
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stdout = m.stdout
	var complaints strings.Builder
	cmd.Stderr = &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run qemu: %w %s", err, strings.TrimSpace(complaints.String()))
	}
	return nil
}

// accelerator returns QEMU's arguments for how instructions are executed.
func (m *machine) accelerator() []string {
	switch {
	case m.count:
		return []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", "max"}
	case m.kvm:
		return []string{"-accel", "kvm", "-cpu", "host"}
	default:
		return []string{"-accel", "tcg,thread=multi", "-cpu", "max"}
	}
}

// result reads the exit status that the machine left. Without one it shows the
// end of the kernel's messages.
func (m *machine) result(ctx context.Context, dir string, runErr error) (int, error) {
	console, _ := os.ReadFile(filepath.Join(dir, "console.log"))
	if m.console {
		_, _ = m.stderr.Write(console)
	}
	left, _ := os.ReadFile(filepath.Join(dir, "status"))
	var status int
	if _, err := fmt.Sscanf(string(left), "status %d", &status); err == nil {
		return status, nil
	}
	if !m.console {
		fmt.Fprintf(m.stderr, "The end of the machine's console:\n%s\n", lastWords(string(console)))
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return 0, errors.Join(errors.New("the machine ended without an exit status; did its kernel panic?"), runErr)
}

// lastWords returns the last lines of a console, and all since the kernel's panic
// if that is longer ago.
func lastWords(console string) string {
	const usual = 40
	lines := strings.Split(strings.TrimRight(console, "\r\n"), "\n")
	from := max(len(lines)-usual, 0)
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "Kernel panic") }); i >= 0 {
		from = min(from, i)
	}
	return strings.Join(lines[from:], "\n")
}
