// SPDX-License-Identifier: Apache-2.0

// Package cache is where things are kept that are built once on a machine and
// used by many processes: the control plane's programs, the virtual machine.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Dir is the directory for things of a kind below $CAUSEWAY_CACHE, else below
// the user's cache directory. It need not exist.
func Dir(kind string) string {
	if dir := os.Getenv("CAUSEWAY_CACHE"); dir != "" {
		return filepath.Join(dir, kind)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		user = homeless()
	}
	return filepath.Join(user, "causeway", kind)
}

// homeless is the cache directory of a user without a home. Programs are run
// from it, so that one that somebody else has made is not taken: what is built
// is then built for this process alone.
func homeless() string {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	if Private(dir) == nil {
		return dir
	}
	return alone()
}

var alone = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "cache-")
	if err != nil {
		return filepath.Join(os.TempDir(), "no-cache") // making anything below it fails likewise
	}
	return dir
})

// Private makes a directory that only this user can enter, in one where others
// may make things too, such as that for temporary files. It refuses what is
// there if it is anything else: somebody else may have put it there, or a link.
func Private(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory: %w", err)
	}
	return CheckPrivate(dir)
}

// CheckPrivate is Private for a directory that is there, and nothing is made. The
// error is os.ErrNotExist if there is none.
func CheckPrivate(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(owner.Uid) != os.Getuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s: must be a directory of this user that nobody else can enter; remove it, or set TMPDIR", dir)
	}
	return nil
}

// Lock takes an exclusive lock on a file, waiting while another process has it;
// progress, unless nil, is then told that this one waits for another that does
// what. The kernel gives the lock back when this process ends, however it ends.
func Lock(ctx context.Context, path string, progress io.Writer, does string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return func() { file.Close() }, nil
	}
	if progress != nil {
		fmt.Fprintln(progress, "Waiting for another process that", does)
	}
	done := make(chan error, 1)
	go func() { done <- unix.Flock(int(file.Fd()), unix.LOCK_EX) }()
	select {
	case err := <-done:
		if err != nil {
			file.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { file.Close() }, nil
	case <-ctx.Done():
		// The waiting call can't be called off: give back what it gets.
		go func() {
			<-done //nolint:errcheck // locked or not
			file.Close()
		}()
		return nil, context.Cause(ctx)
	}
}
