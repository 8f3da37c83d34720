// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDir(t *testing.T) {
	t.Setenv("CAUSEWAY_CACHE", "/somewhere")
	if got := Dir("vm"); got != "/somewhere/vm" {
		t.Errorf("with CAUSEWAY_CACHE: %s", got)
	}
	t.Setenv("CAUSEWAY_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "/home/me/.cache")
	if got := Dir("vm"); got != "/home/me/.cache/causeway/vm" {
		t.Errorf("without: %s", got)
	}
}

// Only one process makes what several need, and a waiting one can give up.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := Lock(t.Context(), path, nil, "tests")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	var told bytes.Buffer
	if _, err := Lock(ctx, path, &told, "tests"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("lock twice: %v", err)
	}
	if !strings.Contains(told.String(), "another process that tests") {
		t.Errorf("told %q", &told)
	}
	unlock()
	again, err := Lock(t.Context(), path, nil, "tests")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// Programs are run from the cache: without a home it is in a directory where
// anyone may make things.
func TestDirWithoutAHome(t *testing.T) {
	t.Setenv("CAUSEWAY_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	t.Setenv("TMPDIR", t.TempDir())
	good := Dir("vm")
	if err := CheckPrivate(filepath.Dir(filepath.Dir(good))); err != nil {
		t.Error(err)
	}
	planted := t.TempDir()
	if err := os.Chmod(planted, 0o777); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	if err := os.Symlink(planted, filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))); err != nil {
		t.Fatal(err)
	}
	if got := Dir("vm"); strings.HasPrefix(got, filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))) {
		t.Errorf("%s is somebody else's", got)
	}
}
