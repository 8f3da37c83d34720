// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// rootDir is where a root is put together, on the tmpfs that every node has on
// /run. The mount is seen by this process alone.
const rootDir = "/run/sandbox"

// hostDirs are the host's directories that hold programs, libraries and their
// configuration. A directory of the host that isn't here doesn't exist inside.
var hostDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu"}

// emptyDirs exist in every root, with their modes.
var emptyDirs = map[string]os.FileMode{
	"/dev": 0o755, "/proc": 0o555, "/sys": 0o555, "/tmp": 0o777 | os.ModeSticky, "/run": 0o755, "/run/lock": 0o777 | os.ModeSticky,
	"/root": 0o700, "/home": 0o755, "/var/lib": 0o755, "/var/log": 0o755, "/var/cache": 0o755, "/var/tmp": 0o777 | os.ModeSticky,
}

// enterRoot builds the file system and makes it this process's root.
func enterRoot(root Root) error {
	if err := os.MkdirAll(rootDir, 0o755); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if err := unix.Mount("tmpfs", rootDir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	b := builder{root: rootDir}
	for path, mode := range emptyDirs {
		// The umask must not take the sticky directories' bits.
		if err := errors.Join(os.MkdirAll(b.in(path), 0o755), os.Chmod(b.in(path), mode)); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	if err := os.Symlink("/run", b.in("/var/run")); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	mounts := slices.Clone(root.Mounts)
	for i := range mounts {
		mounts[i].Target = canonical(mounts[i].Target)
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { return strings.Compare(a.Target, b.Target) })
	if err := b.hostFiles(mounts); err != nil {
		return err
	}
	if err := b.system(root.WritableSysctls); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := b.mount(m); err != nil {
			return err
		}
	}
	if root.ReadOnly {
		if err := unix.MountSetattr(-1, rootDir, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	return pivot(rootDir)
}

// canonical resolves the one symbolic link that every root has.
func canonical(target string) string {
	if target == "/var/run" || strings.HasPrefix(target, "/var/run/") {
		return "/run" + strings.TrimPrefix(target, "/var/run")
	}
	return target
}

// pivot makes dir the root and lets go of the old one (pivot_root(2), the form
// without a directory for the old root).
func pivot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	return os.Chdir("/")
}

type builder struct{ root string }

func (b builder) in(path string) string { return filepath.Join(b.root, path) }

// hostFiles shows the host's directories, read-only. A directory above a mount
// is rebuilt, since the host may not have the place to mount on: a directory
// of the tmpfs, with a symbolic link for every entry of the host's.
//
//	/etc/nginx (mount)   =>   /etc/passwd -> /.host/etc/passwd, ...
//	                          /etc/nginx/        (empty, to mount on)
func (b builder) hostFiles(mounts []Mount) error {
	rebuilt := map[string]bool{"/etc": true} // resolv.conf, hosts: always
	for _, m := range mounts {
		for dir := filepath.Dir(m.Target); dir != "/"; dir = filepath.Dir(dir) {
			rebuilt[dir] = true
		}
	}
	for _, dir := range hostDirs {
		info, err := os.Lstat(dir)
		switch {
		case err != nil:
			continue
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(dir)
			if err == nil {
				err = os.Symlink(to, b.in(dir))
			}
			if err != nil {
				return fmt.Errorf("link %s: %w", dir, err)
			}
		case !info.IsDir():
			continue
		case rebuilt[dir]:
			if err := b.bind(dir, filepath.Join("/.host", dir), true); err != nil {
				return err
			}
			if err := b.rebuild(dir, rebuilt, mounts); err != nil {
				return err
			}
		default:
			if err := b.bind(dir, dir, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b builder) rebuild(dir string, rebuilt map[string]bool, mounts []Mount) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("rebuild %s: %w", dir, err)
	}
	if err := os.MkdirAll(b.in(dir), 0o755); err != nil {
		return fmt.Errorf("rebuild %s: %w", dir, err)
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if rebuilt[path] && entry.IsDir() {
			if err := b.rebuild(path, rebuilt, mounts); err != nil {
				return err
			}
			continue
		}
		if slices.ContainsFunc(mounts, func(m Mount) bool { return m.Target == path }) {
			continue
		}
		if err := os.Symlink(filepath.Join("/.host", path), b.in(path)); err != nil {
			return fmt.Errorf("rebuild %s: %w", dir, err)
		}
	}
	return nil
}

// system mounts /proc, /sys and /dev.
func (b builder) system(writableSysctls bool) error {
	if err := unix.Mount("proc", b.in("/proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if !writableSysctls {
		sys := b.in("/proc/sys")
		if err := unix.Mount(sys, sys, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount /proc/sys: %w", err)
		}
		if err := readOnly(sys); err != nil {
			return err
		}
	}
	// A new sysfs shows the network namespace's interfaces; where the host
	// forbids one, the lab's shows too many, which hurts nobody.
	if err := unix.Mount("sysfs", b.in("/sys"), "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		if err := b.bind("/sys", "/sys", true); err != nil {
			return err
		}
	}
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := b.bind("/dev/"+device, "/dev/"+device, false); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/dev/pts"); err == nil {
		if err := b.bind("/dev/pts", "/dev/pts", false); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink("/proc/self/"+to, b.in("/dev/"+name)); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return b.mount(Mount{Target: "/dev/shm"})
}

func (b builder) mount(m Mount) error {
	if m.Source != "" {
		return b.bind(m.Source, m.Target, m.ReadOnly)
	}
	if err := os.MkdirAll(b.in(m.Target), 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	if err := unix.Mount("tmpfs", b.in(m.Target), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount %s: %w", m.Target, err)
	}
	return nil
}

// bind makes source appear at target, making the place for it.
func (b builder) bind(source, target string, ro bool) error {
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	place := b.in(target)
	if info.IsDir() {
		err = os.MkdirAll(place, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(place), 0o755); err == nil {
		var file *os.File
		if file, err = os.OpenFile(place, os.O_CREATE|os.O_RDONLY, 0o644); err == nil {
			file.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("make place for %s: %w", target, err)
	}
	if err := unix.Mount(source, place, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", source, target, err)
	}
	if ro {
		return readOnly(place)
	}
	return nil
}

// readOnly makes a mount and all below it read-only (Linux 5.12).
func readOnly(place string) error {
	if err := unix.MountSetattr(-1, place, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("make %s read-only: %w", place, err)
	}
	return nil
}
