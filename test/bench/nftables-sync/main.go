// SPDX-License-Identifier: Apache-2.0

// Command nftables-sync compares Causeway's agent with kube-proxy in nftables
// mode: the same Services on the same API server, one after the other, each as
// the process that users run, in a network namespace of its own.
//
//	NxM       N Services of M endpoints behind a real API server
//	NxM fed   ours alone, its store fed directly: no API server between the
//	          event and the commit
//
// full_sync is the process's own figure for its first sync of an empty kernel.
// endpoint_change and service_add run from sending the write to the API server
// to the kernel's notification of the commit that carries it; fed, from the
// moment that the event is handed to the syncer. rss_mb is
// the most that the process and its children had at a time; cpu_s is their CPU
// time for start, first sync and all changes.
//
// BENCH_SIZES (default 1000,10000) and BENCH_FED (default 10000,50000) are
// numbers of Services; BENCH_RUNS (default 5) is how often each starts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/test/bench/report"
)

const (
	insideVariable = "CAUSEWAY_BENCH_INSIDE"
	endpointsEach  = 5
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(insideVariable) == "" {
		return enter(ctx)
	}
	ctrllog.SetLogger(logr.Discard()) // envtest's
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nftables-sync:", err)
		return 1
	}
	return 0
}

// enter runs this program again in a network namespace of its own.
func enter(ctx context.Context) int {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "nftables-sync: a network namespace needs root:", err)
		return 1
	}
	return 0
}

func numbers(variable, unset string) ([]int, error) {
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

func bench(ctx context.Context) error {
	sizes, err := numbers("BENCH_SIZES", "1000,10000")
	if err != nil {
		return err
	}
	fed, err := numbers("BENCH_FED", "10000,50000")
	if err != nil {
		return err
	}
	runs, err := numbers("BENCH_RUNS", "5")
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", nodeAddress + "/32", "dev", "lo"}} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	result := &report.Report{Bench: "nftables-sync"}
	for _, n := range fed {
		progress("%dx%d fed", n, endpointsEach)
		if err := benchFed(ctx, result, n, runs[0]); err != nil {
			return fmt.Errorf("%dx%d fed: %w", n, endpointsEach, err)
		}
	}
	for _, n := range sizes {
		if err := benchBoth(ctx, result, n, runs[0]); err != nil {
			return fmt.Errorf("%dx%d: %w", n, endpointsEach, err)
		}
	}
	return result.Write(os.Stdout, "build/bench")
}

// benchBoth runs both contenders on one API server.
func benchBoth(ctx context.Context, result *report.Report, n, runs int) error {
	progress("%dx%d: API server with %d Services", n, endpointsEach, n)
	c, err := startCluster(ctx, n)
	if err != nil {
		return err
	}
	defer c.stop()
	contenders, err := newContenders(ctx, c)
	if err != nil {
		return err
	}
	defer contenders.clean()
	var both [2]samples
	for i, who := range []*contender{contenders.ours, contenders.peer} {
		for r := range runs {
			progress("%dx%d: %s, run %d of %d", n, endpointsEach, who.name, r+1, runs)
			if err := who.measure(ctx, c, &both[i], r == runs-1); err != nil {
				return fmt.Errorf("%s: %w", who.name, err)
			}
		}
	}
	add(result, fmt.Sprintf("%dx%d", n, endpointsEach), both[0], &both[1], contenders.peer.name)
	return nil
}

// samples is what one contender showed in one case.
type samples struct {
	fullSync, endpointChange, serviceAdd, rss, cpu []float64
}

func add(result *report.Report, name string, ours samples, peer *samples, peerName string) {
	one := func(metric, unit string, pick func(*samples) []float64) {
		line := report.Line{Case: name, Metric: metric, Unit: unit, Ours: report.Summarise("", pick(&ours))}
		if len(pick(&ours)) == 0 {
			return
		}
		if peer != nil {
			figures := report.Summarise(peerName, pick(peer))
			line.Peer = &figures
		}
		result.Add(line)
	}
	one("full_sync", "s", func(s *samples) []float64 { return s.fullSync })
	one("endpoint_change", "s", func(s *samples) []float64 { return s.endpointChange })
	one("service_add", "s", func(s *samples) []float64 { return s.serviceAdd })
	one("rss_mb", "MB", func(s *samples) []float64 { return s.rss })
	one("cpu_s", "s", func(s *samples) []float64 { return s.cpu })
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
