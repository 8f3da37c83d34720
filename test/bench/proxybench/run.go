// SPDX-License-Identifier: Apache-2.0

// Package proxybench is what the benchmarks of proxy modes share: an API server
// full of Services, the agent and kube-proxy as the processes that users run, and
// their own figures.
package proxybench

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/testkit/confine"
)

// Main runs a benchmark in a network namespace of its own, until it ends or a
// signal ends it, and returns the exit status.
func Main(bench func(context.Context) error) int {
	return confine.Run(func() int {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if !confine.Inside() || os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+": a network namespace needs root")
			return 1
		}
		ctrllog.SetLogger(logr.Discard()) // envtest's
		if err := bench(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
			return 1
		}
		return 0
	}, confine.Network())
}

// Numbers reads a list of numbers from an environment variable.
func Numbers(variable, unset string) ([]int, error) {
	text := os.Getenv(variable)
	if text == "" {
		text = unset
	}
	var out []int
	for _, s := range strings.Split(text, ",") {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 60000 {
			return nil, fmt.Errorf("%s=%s: must be numbers from 1 to 60000", variable, text)
		}
		out = append(out, n)
	}
	return out, nil
}

// Progress prints a line with the time to standard error.
func Progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
