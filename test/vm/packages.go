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

	"github.com/causeway-lb/causeway/internal/lab/apt"
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
	if !apt.CanInstall() {
		return fmt.Errorf("the virtual machine needs packages that are missing. Install them as root: apt-get install --no-install-recommends %s",
			strings.Join(missing, " "))
	}
	fmt.Fprintln(progress, "Installing", strings.Join(missing, ", "))
	if err := apt.Install(ctx, progress, missing...); err != nil {
		return fmt.Errorf("install packages: %w", err)
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
