// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// libraryDirs is where Debian keeps what its programs load.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// extensions of the iptables programs are opened by name at run time.
const iptablesExtensions = "/usr/lib/x86_64-linux-gnu/xtables"

// addProgram adds a program of the host, the links that lead to it, and every
// library that it needs, at the same paths.
func addProgram(a *archive, added map[string]bool, name string) error {
	at, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("find program %s to take along: %w", name, err)
	}
	if err := addELF(a, added, at); err != nil {
		return fmt.Errorf("take program %s along: %w", name, err)
	}
	if !strings.Contains(filepath.Base(at), "tables") || added[iptablesExtensions] {
		return nil
	}
	added[iptablesExtensions] = true
	extensions, _ := filepath.Glob(filepath.Join(iptablesExtensions, "*.so"))
	for _, extension := range extensions {
		if err := addELF(a, added, extension); err != nil {
			return fmt.Errorf("take iptables extension along: %w", err)
		}
	}
	return nil
}

// addELF adds a file, through its links, with its interpreter and libraries.
func addELF(a *archive, added map[string]bool, at string) error {
	if added[at] {
		return nil
	}
	added[at] = true
	if target, err := os.Readlink(at); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		a.link(at, target)
		return addELF(a, added, target)
	}
	if err := a.file(at, 0o755, at); err != nil {
		return err
	}
	needs, err := needed(at)
	if err != nil {
		return fmt.Errorf("read libraries of %s: %w", at, err)
	}
	for _, library := range needs {
		if err := addELF(a, added, library); err != nil {
			return err
		}
	}
	return nil
}

// needed returns the paths of the interpreter and the libraries that an ELF file
// names; none if it is static.
func needed(at string) ([]string, error) {
	file, err := elf.Open(at)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var out []string
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(name, 0); err != nil {
			return nil, fmt.Errorf("read interpreter: %w", err)
		}
		out = append(out, strings.TrimRight(string(name), "\x00"))
	}
	names, err := file.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		path, err := findLibrary(name)
		if err != nil {
			return nil, err
		}
		out = append(out, path)
	}
	return out, nil
}

func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs {
		at := filepath.Join(dir, name)
		if _, err := os.Stat(at); err == nil {
			return at, nil
		}
	}
	return "", errors.New("find library " + name + " in " + strings.Join(libraryDirs, ", "))
}

// checkStatic tells apart early what would end in a bare "not found" inside the
// machine.
func checkStatic(program string) error {
	file, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("read program %s: %w", program, err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("program %s is linked dynamically: build it with CGO_ENABLED=0", program)
		}
	}
	return nil
}
