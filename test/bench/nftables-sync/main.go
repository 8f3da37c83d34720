// SPDX-License-Identifier: Apache-2.0

// Command nftables-sync compares Causeway's agent with kube-proxy in nftables
// mode: the same Services on the same API server, one after the other, each as
// the process that users run, in a network namespace of its own.
//
//	NxM       N Services of M endpoints behind a real API server
//	NxM fed   ours alone, its store fed directly: no API server between the
//	          event and the commit
//
// full_sync is the process's own figure for its first sync of an empty kernel,
// computing included; start_to_synced is from starting the process to that.
// endpoint_change and service_add run from sending the write to the API server
// to the kernel's notification of the commit that carries it; fed, from the
// call that a reflector makes with what the watch delivered. repair_element and
// repair_flush run from another process's transaction, which deletes one
// element or both tables, to the commit that makes good for it. rss_mb is
// the most that the process and its children had at a time; cpu_s is their CPU
// time for start, first sync and all changes.
//
// BENCH_SIZES (default 1000,10000) and BENCH_FED (default 10000,50000) are
// numbers of Services; BENCH_RUNS (default 5) is how often each starts.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(proxybench.Main(bench)) }

func bench(ctx context.Context) error {
	sizes, err := proxybench.Numbers("BENCH_SIZES", "1000,10000")
	if err != nil {
		return err
	}
	fed, err := proxybench.Numbers("BENCH_FED", "10000,50000")
	if err != nil {
		return err
	}
	runs, err := proxybench.Numbers("BENCH_RUNS", "5")
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", proxybench.NodeAddress + "/32", "dev", "lo"}} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	result := &report.Report{Bench: "nftables-sync"}
	for _, n := range fed {
		proxybench.Progress("%dx%d fed", n, proxybench.EndpointsEach)
		if err := benchFed(ctx, result, n, runs[0]); err != nil {
			return fmt.Errorf("%dx%d fed: %w", n, proxybench.EndpointsEach, err)
		}
	}
	for _, n := range sizes {
		if err := benchBoth(ctx, result, n, runs[0]); err != nil {
			return fmt.Errorf("%dx%d: %w", n, proxybench.EndpointsEach, err)
		}
	}
	return result.Write(os.Stdout, "build/bench")
}

// benchBoth runs both contenders on one API server.
func benchBoth(ctx context.Context, result *report.Report, n, runs int) error {
	proxybench.Progress("%dx%d: API server with %d Services", n, proxybench.EndpointsEach, n)
	c, err := proxybench.StartCluster(ctx, n)
	if err != nil {
		return err
	}
	defer c.Stop()
	dir, err := os.MkdirTemp("", "nftables-sync-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ours, peer, err := proxybench.Pair(ctx, c, dir, "nftables")
	if err != nil {
		return err
	}
	var both [2]samples
	for i, who := range []*proxybench.Contender{ours, peer} {
		for r := range runs {
			proxybench.Progress("%dx%d: %s, run %d of %d", n, proxybench.EndpointsEach, who.Name, r+1, runs)
			if err := measure(ctx, who, c, &both[i], r == runs-1); err != nil {
				return fmt.Errorf("%s: %w", who.Name, err)
			}
		}
	}
	add(result, fmt.Sprintf("%dx%d", n, proxybench.EndpointsEach), both[0], &both[1], peer.Name)
	return nil
}

// samples is what one contender showed in one case.
type samples struct {
	start, fullSync, endpointChange, serviceAdd, repairElement, repairFlush, rss, cpu []float64
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
	one("start_to_synced", "s", func(s *samples) []float64 { return s.start })
	one("endpoint_change", "s", func(s *samples) []float64 { return s.endpointChange })
	one("service_add", "s", func(s *samples) []float64 { return s.serviceAdd })
	one("repair_element", "s", func(s *samples) []float64 { return s.repairElement })
	one("repair_flush", "s", func(s *samples) []float64 { return s.repairFlush })
	one("rss_mb", "MB", func(s *samples) []float64 { return s.rss })
	one("cpu_s", "s", func(s *samples) []float64 { return s.cpu })
}
