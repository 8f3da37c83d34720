// SPDX-License-Identifier: Apache-2.0

// Package cache is where things are kept that are built once on a machine and
// used by many processes: the control plane's programs, the virtual machine.
package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
		user = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	return filepath.Join(user, "causeway", kind)
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
