// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/internal/lab/apt"
)

// Dependency is a program of the host, and the Debian package that has it.
type Dependency struct {
	Program, Package string
	// Needed tells a program that the lab can't do without from one that it
	// only offers to its user. Tests tells those that tests alone call.
	Needed, Tests bool
}

// Dependencies are all that the lab and the tests call. The control plane and
// Causeway itself are built from source and aren't among them.
var Dependencies = []Dependency{
	{Program: "nsenter", Package: "util-linux", Needed: true},
	{Program: "nft", Package: "nftables"},
	{Program: "ip", Package: "iproute2"},
	{Program: "arping", Package: "iputils-arping"},
	{Program: "tcpdump", Package: "tcpdump"},
	{Program: "conntrack", Package: "conntrack"},
	{Program: "curl", Package: "curl"},
	{Program: "haproxy", Package: "haproxy", Tests: true},
	{Program: "iptables-restore", Package: "iptables", Tests: true},
	{Program: "ipset", Package: "ipset", Tests: true},
}

// MissingError names programs that are not there and how to get them.
type MissingError struct {
	Missing []Dependency
}

func (e *MissingError) Error() string {
	var programs, packages []string
	for _, d := range e.Missing {
		programs = append(programs, d.Program)
		packages = append(packages, d.Package)
	}
	return fmt.Sprintf("not installed: %s; install with: sudo apt-get install %s (or your distribution's equivalent)",
		strings.Join(programs, ", "), strings.Join(packages, " "))
}

// Missing returns the dependencies, with or without those of tests, that aren't
// in PATH, or where root's PATH would have them.
func Missing(tests bool) []Dependency {
	return missing(slices.DeleteFunc(slices.Clone(Dependencies), func(d Dependency) bool { return d.Tests && !tests }))
}

func missing(programs []Dependency) []Dependency {
	return slices.DeleteFunc(slices.Clone(programs), func(d Dependency) bool {
		if _, err := exec.LookPath(d.Program); err == nil {
			return true
		}
		return slices.ContainsFunc([]string{"/usr/local/sbin/", "/usr/sbin/", "/sbin/"}, func(dir string) bool {
			_, err := os.Stat(dir + d.Program)
			return err == nil
		})
	})
}

// InstallMissing installs missing dependencies with apt when this is root on a
// Debian, writing apt's output to progress. What is missing then, or when it
// can't install, is a *MissingError. Tests need some more than the lab.
func InstallMissing(ctx context.Context, progress io.Writer, tests bool) error {
	return InstallPrograms(ctx, progress, Missing(tests))
}

// InstallPrograms is InstallMissing for other programs.
func InstallPrograms(ctx context.Context, progress io.Writer, programs []Dependency) error {
	absent := missing(programs)
	if len(absent) == 0 {
		return nil
	}
	if !apt.CanInstall() {
		return &MissingError{absent}
	}
	packages := make([]string, 0, len(absent))
	for _, d := range absent {
		packages = append(packages, d.Package)
	}
	fmt.Fprintf(progress, "Installing %s\n", strings.Join(packages, " "))
	if err := apt.Install(ctx, progress, packages...); err != nil {
		return errors.Join(&MissingError{absent}, err)
	}
	if absent = missing(absent); len(absent) > 0 {
		return &MissingError{absent}
	}
	return nil
}

// Check returns an error when the lab can't run here for want of a program.
func Check() error {
	missing := slices.DeleteFunc(Missing(false), func(d Dependency) bool { return !d.Needed })
	if len(missing) > 0 {
		return &MissingError{missing}
	}
	return nil
}
