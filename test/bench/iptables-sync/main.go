// SPDX-License-Identifier: Apache-2.0

// Command iptables-sync compares Causeway's agent with kube-proxy, both in
// iptables mode: the same Services on the same API server, one after the other,
// each as the process that users run, in a network namespace of its own, with
// either variant of the iptables programs.
//
// Every Service and endpoint address leads to this machine itself, where one
// server answers with the address that was dialled in the end. A change is seen
// by its outcome, the same for both variants and contenders:
//
//	full_sync        the process's own figure for its first sync
//	serving          from its start until Services all over the range answer
//	endpoint_change  from sending the write to the API server until a connection
//	                 ends up at the new endpoint, one of five
//	service_add      the same until the new Service answers
//	rss_mb, cpu_s    the most memory, and all CPU time, with child processes
//
// A first sync that does not end within BENCH_WAIT seconds (default 300) is given
// up: its figure is that time, a lower bound, and the peer's name says so.
//
// BENCH_SIZES (default 1000,10000) are numbers of Services, BENCH_VARIANTS
// (default nft,legacy) the variants, BENCH_RUNS (default 3) is how often each
// starts, BENCH_CHANGES (default 10) how many changes the last run follows.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(proxybench.Main(bench)) }

// settings are what the environment says.
type settings struct {
	sizes, runs, changes []int
	wait                 time.Duration
	variants             []string
}

func readSettings() (settings, error) {
	var s settings
	var errs [4]error
	var wait []int
	s.sizes, errs[0] = proxybench.Numbers("BENCH_SIZES", "1000,10000")
	s.runs, errs[1] = proxybench.Numbers("BENCH_RUNS", "3")
	s.changes, errs[2] = proxybench.Numbers("BENCH_CHANGES", "10")
	wait, errs[3] = proxybench.Numbers("BENCH_WAIT", "300")
	if err := errors.Join(errs[:]...); err != nil {
		return s, err
	}
	s.wait = time.Duration(wait[0]) * time.Second
	s.variants = []string{"nft", "legacy"}
	if v := os.Getenv("BENCH_VARIANTS"); v != "" {
		s.variants = strings.Split(v, ",")
	}
	return s, nil
}

func bench(ctx context.Context) error {
	set, err := readSettings()
	if err != nil {
		return err
	}
	server, err := prepare(ctx)
	if err != nil {
		return err
	}
	defer server.Close()
	result := &report.Report{Bench: "iptables-sync"}
	for _, n := range set.sizes {
		if err := size(ctx, result, set, n); err != nil {
			return err
		}
	}
	return result.Write(os.Stdout, "build/bench")
}

// size runs both contenders with both variants on one API server.
func size(ctx context.Context, result *report.Report, set settings, n int) error {
	proxybench.Progress("API server with %d Services", n)
	c, err := proxybench.StartCluster(ctx, n)
	if err != nil {
		return err
	}
	defer c.Stop()
	dir, err := os.MkdirTemp("", "iptables-sync-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ours, peer, err := proxybench.Pair(ctx, c, dir, "iptables")
	if err != nil {
		return err
	}
	for _, variant := range set.variants {
		name := fmt.Sprintf("%dx%d %s", n, proxybench.EndpointsEach, variant)
		if err := choose(dir, variant); err != nil {
			return err
		}
		var both [2]samples
		for i, who := range []*proxybench.Contender{ours, peer} {
			for r := range set.runs[0] {
				proxybench.Progress("%s: %s, run %d of %d", name, who.Name, r+1, set.runs[0])
				m := measurement{cluster: c, samples: &both[i], wait: set.wait}
				if r == set.runs[0]-1 {
					m.changes = set.changes[0]
				}
				if err := m.run(ctx, who); err != nil {
					return fmt.Errorf("%s: %s: %w", name, who.Name, err)
				}
				if both[i].gaveUp {
					break // it would not be any faster
				}
			}
		}
		add(result, name, peer.Name, set.wait, &both[0], &both[1])
	}
	return nil
}

// choose makes a variant the one that "iptables" means, for this process and
// those that it starts.
func choose(dir, variant string) error {
	bin := filepath.Join(dir, variant)
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for _, base := range []string{"iptables", "ip6tables"} {
		for _, program := range []string{"", "-save", "-restore"} {
			at, err := exec.LookPath(base + "-" + variant + program)
			if err != nil {
				return fmt.Errorf("find variant %s: %w", variant, err)
			}
			link := filepath.Join(bin, base+program)
			if err := os.Symlink(at, link); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
	}
	path := slices.DeleteFunc(filepath.SplitList(os.Getenv("PATH")), func(p string) bool { return filepath.Dir(p) == dir })
	return os.Setenv("PATH", strings.Join(append([]string{bin}, path...), string(filepath.ListSeparator)))
}

// samples is what one contender showed in one case.
type samples struct {
	fullSync, serving, endpointChange, serviceAdd, rss, cpu []float64
	// gaveUp says that a first sync did not end in time.
	gaveUp bool
}

func add(result *report.Report, name, peerName string, wait time.Duration, ours, peer *samples) {
	if peer.gaveUp {
		peerName = fmt.Sprintf("%s, first sync not finished after %s: a lower bound", peerName, wait)
	}
	for _, m := range []struct {
		metric, unit string
		pick         func(*samples) []float64
	}{
		{"full_sync", "s", func(s *samples) []float64 { return s.fullSync }},
		{"serving", "s", func(s *samples) []float64 { return s.serving }},
		{"endpoint_change", "s", func(s *samples) []float64 { return s.endpointChange }},
		{"service_add", "s", func(s *samples) []float64 { return s.serviceAdd }},
		{"rss_mb", "MB", func(s *samples) []float64 { return s.rss }},
		{"cpu_s", "s", func(s *samples) []float64 { return s.cpu }},
	} {
		if len(m.pick(ours)) == 0 {
			continue
		}
		line := report.Line{Case: name, Metric: m.metric, Unit: m.unit, Ours: report.Summarise("", m.pick(ours))}
		if len(m.pick(peer)) > 0 {
			figures := report.Summarise(peerName, m.pick(peer))
			line.Peer = &figures
		}
		result.Add(line)
	}
}
