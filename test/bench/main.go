// SPDX-License-Identifier: Apache-2.0

// Command bench runs Causeway's benchmarks, each a program of its own in a
// directory below this one, by name or all:
//
//	go run ./test/bench [NAME...]
//
// A directory with a go.mod is a module of its own: it compares with a peer
// that the product must not depend on.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all, err := benchmarks("test/bench")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	chosen := os.Args[1:]
	if len(chosen) == 0 {
		chosen = all
	}
	code := 0
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			fmt.Fprintf(os.Stderr, "bench: no benchmark %q: choose from %s\n", name, strings.Join(all, ", "))
			return 2
		}
		if err := runOne(ctx, name); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", name, err)
			code = 1
		}
		if ctx.Err() != nil {
			return 1
		}
	}
	return code
}

// benchmarks lists the directories that hold a main.go.
func benchmarks(root string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(root, "*", "main.go"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("no benchmarks here: run this at the top of the source tree")
	}
	var names []string
	for _, path := range paths {
		names = append(names, filepath.Base(filepath.Dir(path)))
	}
	return names, nil
}

// runOne runs a benchmark at the top of the tree, whichever module it is in.
func runOne(ctx context.Context, name string) error {
	dir := filepath.Join("test", "bench", name)
	scratch, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	program := filepath.Join(scratch, name)
	build := exec.CommandContext(ctx, "go", "build", "-C", dir, "-o", program, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	cmd := exec.CommandContext(ctx, program)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd.Run()
}
