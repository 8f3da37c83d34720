// SPDX-License-Identifier: Apache-2.0

// Package apt gets Debian's packages for the lab and the tests. It waits for
// whoever else installs some.
package apt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// CanInstall says whether this process may install packages: it is root, on a
// system that has apt-get.
func CanInstall() bool {
	_, err := exec.LookPath("apt-get")
	return err == nil && os.Geteuid() == 0
}

// policy is what Debian's packages ask whether they may start their services.
const policy = "/usr/sbin/policy-rc.d"

// Install installs packages, and starts no service of theirs. What apt-get prints
// goes to progress.
func Install(ctx context.Context, progress io.Writer, packages ...string) error {
	if _, err := os.Stat(policy); os.IsNotExist(err) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer os.Remove(policy)
	}
	return WithIndex(ctx, progress, func() error {
		return run(ctx, progress, "", append([]string{"install", "-y", "--no-install-recommends"}, packages...)...)
	})
}

// Download fetches the file of one package into a directory. It needs root only
// where the package index is missing or old.
func Download(ctx context.Context, progress io.Writer, dir, name string) error {
	return WithIndex(ctx, progress, func() error { return run(ctx, progress, dir, "download", name) })
}

// WithIndex does something once more with a new index of packages if it fails:
// that may have been missing, or older than the mirror.
func WithIndex(ctx context.Context, progress io.Writer, do func() error) error {
	err := do()
	if err == nil {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w; if the package index is missing or old, run as root: apt-get update", err)
	}
	return errors.Join(run(ctx, progress, "", "update"), do())
}

func run(ctx context.Context, progress io.Writer, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = progress, progress
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w", args[0], err)
	}
	return nil
}
