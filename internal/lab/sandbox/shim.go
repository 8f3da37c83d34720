// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"golang.org/x/sys/unix"
)

const entry = "sandbox"

func init() { reexec.Register(entry, shim) }

// shim is the process between clone and execve. All of it runs on one thread,
// since namespaces, capabilities and flags are the thread's, and execve keeps
// those of the thread that calls it.
func shim() int {
	runtime.LockOSThread()
	unix.CloseOnExec(specFD)
	unix.CloseOnExec(errorFD)
	report := os.NewFile(errorFD, "report")
	spec, err := readSpec()
	if err == nil {
		err = become(spec)
	}
	fmt.Fprint(report, err)
	return 127
}

func readSpec() (Spec, error) {
	var spec Spec
	file := os.NewFile(specFD, "spec")
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return spec, fmt.Errorf("read spec: %w", err)
	}
	data := make([]byte, info.Size())
	if _, err := file.ReadAt(data, 0); err != nil {
		return spec, fmt.Errorf("read spec: %w", err)
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return spec, fmt.Errorf("decode spec: %w", err)
	}
	return spec, nil
}

// become turns this process into the program. It returns only with an error.
func become(spec Spec) error {
	if spec.Network != "" {
		if err := enterNetwork(spec.Network); err != nil {
			return err
		}
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	var err error
	if spec.Root != nil {
		err = enterRoot(*spec.Root)
	} else {
		err = freshSystemMounts()
	}
	if err != nil {
		return err
	}
	if err := os.Chdir(or(spec.Dir, "/")); err != nil {
		return fmt.Errorf("enter working directory: %w", err)
	}
	path := spec.Path
	if path == "" {
		if path, err = lookPath(spec.Argv[0], spec.Env); err != nil {
			return err
		}
	}
	// A filter takes CAP_SYS_ADMIN or no_new_privs, so it comes first or last.
	if !spec.NoNewPrivileges {
		if err := filterCalls(spec.Seccomp); err != nil {
			return err
		}
	}
	if err := dropPrivileges(spec); err != nil {
		return err
	}
	if spec.NoNewPrivileges {
		if err := filterCalls(spec.Seccomp); err != nil {
			return err
		}
	}
	return fmt.Errorf("execute %s: %w", path, unix.Exec(path, spec.Argv, spec.Env))
}

// filterCalls has the kernel filter this thread's system calls from now on, and
// those of what it executes.
func filterCalls(program []unix.SockFilter) error {
	if len(program) == 0 {
		return nil
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return fmt.Errorf("filter system calls: %w", errno)
	}
	return nil
}

func enterNetwork(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// freshSystemMounts gives a process that keeps the host's files a /proc of its
// PID namespace, a /sys of its network namespace and an empty /run.
func freshSystemMounts() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := os.MkdirAll("/run/lock", 0o1777); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// Only for the eyes of people; some hosts don't allow it.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// lookPath finds a program as execvp does, with the program's own PATH.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, variable := range env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			path = value
		}
	}
	for _, dir := range filepath.SplitList(path) {
		candidate := filepath.Join(dir, name)
		if info, err := os.Stat(candidate); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return candidate, nil
		}
	}
	return "", fmt.Errorf("find %s in %s: not there", name, path)
}

// dropPrivileges comes last: most of what is before it needs them.
func dropPrivileges(spec Spec) error {
	if spec.Capabilities != nil {
		if err := bound(spec.Capabilities); err != nil {
			return err
		}
	}
	if (spec.UID != 0 || spec.GID != 0) && mapped("/proc/self/uid_map", spec.UID) && mapped("/proc/self/gid_map", spec.GID) {
		if err := syscall.Setgroups([]int{spec.GID}); err != nil {
			return fmt.Errorf("set groups: %w", err)
		}
		if err := syscall.Setgid(spec.GID); err != nil {
			return fmt.Errorf("set group %d: %w", spec.GID, err)
		}
		if err := syscall.Setuid(spec.UID); err != nil {
			return fmt.Errorf("set user %d: %w", spec.UID, err)
		}
	}
	if spec.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	return nil
}

// mapped tells whether a user namespace knows an id.
func mapped(file string, id int) bool {
	data, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		var inside, outside, count int
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && id >= inside && id-inside < count {
			return true
		}
	}
	return false
}

// bound drops every capability that isn't named from the bounding set, and
// with the coming execve from all others.
func bound(names []string) error {
	keep := map[uintptr]bool{}
	for _, name := range names {
		number, ok := capabilities[strings.TrimPrefix(strings.ToUpper(name), "CAP_")]
		if !ok {
			return fmt.Errorf("unknown capability %s", name)
		}
		keep[number] = true
	}
	for number := uintptr(0); ; number++ {
		if keep[number] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, number, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the kernel's last
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", number, err)
		}
	}
	// Inheritable and ambient ones would survive the execve.
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	return nil
}

// DefaultCapabilities is what container runtimes give a container that asks
// for nothing.
var DefaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
	"NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

// AllCapabilities is every name that Spec.Capabilities may hold.
func AllCapabilities() []string {
	names := make([]string, 0, len(capabilities))
	for name := range capabilities {
		names = append(names, name)
	}
	return names
}

var capabilities = map[string]uintptr{
	"CHOWN": unix.CAP_CHOWN, "DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"FOWNER": unix.CAP_FOWNER, "FSETID": unix.CAP_FSETID, "KILL": unix.CAP_KILL, "SETGID": unix.CAP_SETGID,
	"SETUID": unix.CAP_SETUID, "SETPCAP": unix.CAP_SETPCAP, "LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE,
	"NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "NET_BROADCAST": unix.CAP_NET_BROADCAST, "NET_ADMIN": unix.CAP_NET_ADMIN,
	"NET_RAW": unix.CAP_NET_RAW, "IPC_LOCK": unix.CAP_IPC_LOCK, "IPC_OWNER": unix.CAP_IPC_OWNER,
	"SYS_MODULE": unix.CAP_SYS_MODULE, "SYS_RAWIO": unix.CAP_SYS_RAWIO, "SYS_CHROOT": unix.CAP_SYS_CHROOT,
	"SYS_PTRACE": unix.CAP_SYS_PTRACE, "SYS_PACCT": unix.CAP_SYS_PACCT, "SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"SYS_BOOT": unix.CAP_SYS_BOOT, "SYS_NICE": unix.CAP_SYS_NICE, "SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
	"SYS_TIME": unix.CAP_SYS_TIME, "SYS_TTY_CONFIG": unix.CAP_SYS_TTY_CONFIG, "MKNOD": unix.CAP_MKNOD,
	"LEASE": unix.CAP_LEASE, "AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL,
	"SETFCAP": unix.CAP_SETFCAP, "MAC_OVERRIDE": unix.CAP_MAC_OVERRIDE, "MAC_ADMIN": unix.CAP_MAC_ADMIN,
	"SYSLOG": unix.CAP_SYSLOG, "WAKE_ALARM": unix.CAP_WAKE_ALARM, "BLOCK_SUSPEND": unix.CAP_BLOCK_SUSPEND,
	"AUDIT_READ": unix.CAP_AUDIT_READ, "PERFMON": unix.CAP_PERFMON, "BPF": unix.CAP_BPF,
	"CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
}

func or(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
