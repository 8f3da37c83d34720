// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// packages maps each program that the machine needs to Debian's package of it.
var packages = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"busybox":            "busybox-static",
}

// ensurePrograms installs what is missing when this process may, and otherwise
// says which command does.
func ensurePrograms(ctx context.Context, progress io.Writer) error {
	missing := missingPackages()
	if len(missing) == 0 {
		return nil
	}
	install := "apt-get install --no-install-recommends " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("the virtual machine needs the programs of Debian's packages %s: install them", strings.Join(missing, ", "))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("the virtual machine needs packages that are missing. Install them as root: %s", install)
	}
	fmt.Fprintln(progress, "Installing", strings.Join(missing, ", "))
	arguments := append([]string{"-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends"}, missing...)
	if err := command(ctx, "/", "apt-get", arguments...); err != nil {
		// The index may be missing or older than the mirror.
		if err := aptUpdate(ctx, progress); err != nil {
			return err
		}
		if err := command(ctx, "/", "apt-get", arguments...); err != nil {
			return fmt.Errorf("install packages: %w", err)
		}
	}
	return nil
}

func missingPackages() []string {
	var missing []string
	for program, name := range packages {
		at, err := exec.LookPath(program)
		if err != nil || program == "busybox" && checkStatic(at) != nil {
			missing = append(missing, name)
		}
	}
	slices.Sort(missing)
	return missing
}

func aptUpdate(ctx context.Context, progress io.Writer) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the package index is missing or old: run as root: apt-get update")
	}
	fmt.Fprintln(progress, "Updating the package index")
	if err := command(ctx, "/", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"); err != nil {
		return fmt.Errorf("update the package index: %w", err)
	}
	return nil
}

// command runs a program in a directory. What it printed is in the error.
func command(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", cmd, err, bytes.TrimSpace(out))
	}
	return nil
}
