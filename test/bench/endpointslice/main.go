// SPDX-License-Identifier: Apache-2.0

// Command endpointslice compares Causeway's endpoint controllers with those of
// kube-controller-manager: the same changes on the same API server, one after
// the other, each as the process that users run.
//
//	one-service     all Pods of one Service come, are replaced, and go
//	many-services   Services of three Pods each in one namespace; Pods become
//	                ready and unready at a steady rate
//
// Measured are the time from the write that makes a Pod ready (or not) to the
// slice that says so being seen by a watch, the process's CPU time and memory,
// the writes of slices (slice_writes), and all that the API server counted of
// write requests for slices, Endpoints objects, Services' status and events
// (writes). Both may send as many requests as they like, and both keep slices,
// Endpoints objects and mirrored slices.
//
// BENCH_SCALE (default 1) multiplies the number of objects: 1 is 5,000 Pods of
// one Service, and 5,000 Services of 3 Pods. BENCH_CASE=one-service or
// many-services runs that one alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(confine.Run(run)) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "endpointslice:", err)
		return 1
	}
	return 0
}

// size is how many objects the cases have.
type size struct {
	onePods, services, flips int
}

func sizeFromEnv() (size, error) {
	scale := 1.0
	if text := os.Getenv("BENCH_SCALE"); text != "" {
		var err error
		if scale, err = strconv.ParseFloat(text, 64); err != nil || scale <= 0 {
			return size{}, fmt.Errorf("BENCH_SCALE=%s: must be a number above 0", text)
		}
	}
	at := func(n int) int { return max(10, int(float64(n)*scale)) }
	return size{onePods: at(5000), services: at(5000), flips: at(2000)}, nil
}

func bench(ctx context.Context) error {
	sizes, err := sizeFromEnv()
	if err != nil {
		return err
	}
	chosen, err := casesFromEnv()
	if err != nil {
		return err
	}
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver", "kube-controller-manager")
	if err != nil {
		return err
	}
	cluster, err := startCluster(assets)
	if err != nil {
		return err
	}
	defer cluster.stop()
	contenders, err := newContenders(ctx, cluster, assets)
	if err != nil {
		return err
	}
	defer contenders.clean()

	result := &report.Report{Bench: "endpointslice"}
	for _, one := range chosen {
		name := fmt.Sprintf(one.title, one.count(sizes))
		if one.load != nil {
			if err := one.load(ctx, cluster, sizes); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		var both [2]samples
		for i, c := range []*contender{contenders.ours, contenders.peer} {
			progress("%s: %s", name, c.name)
			if both[i], err = one.run(ctx, cluster, c, sizes); err != nil {
				return fmt.Errorf("%s: %s: %w", name, c.name, err)
			}
			if err := cluster.deleteSlices(ctx); err != nil {
				return err
			}
		}
		progress("%s: done", name)
		add(result, name, both[0], both[1], contenders.peer.name)
	}
	return result.Write(os.Stdout, "build/bench")
}

// benchCase is one of the cases.
type benchCase struct {
	name, title string // title has a verb for count
	count       func(size) int
	load        func(context.Context, *clusterAPI, size) error // nil: nothing to load
	run         func(context.Context, *clusterAPI, *contender, size) (samples, error)
}

// casesFromEnv returns the cases that BENCH_CASE asks for.
func casesFromEnv() ([]benchCase, error) {
	all := []benchCase{
		{name: "one-service", title: "one-service-%d-pods", count: func(s size) int { return s.onePods }, run: oneService},
		{name: "many-services", title: "%d-services", count: func(s size) int { return s.services }, load: loadManyServices, run: manyServices},
	}
	text := os.Getenv("BENCH_CASE")
	if text == "" {
		return all, nil
	}
	for _, one := range all {
		if one.name == text {
			return []benchCase{one}, nil
		}
	}
	return nil, fmt.Errorf("BENCH_CASE=%s: must be %s or %s", text, all[0].name, all[1].name)
}

// samples is what one contender showed in one case.
type samples struct {
	latency []float64 // seconds, one per change
	cpu     float64   // seconds
	rss     float64   // MB, at the most
	// sliceWrites are what a watch saw, writes the requests that change something,
	// refused ones included.
	sliceWrites, writes float64
}

func add(result *report.Report, name string, ours, peer samples, peerName string) {
	one := func(metric, unit string, a, b []float64) {
		figures := report.Summarise(peerName, b)
		result.Add(report.Line{Case: name, Metric: metric, Unit: unit, Ours: report.Summarise("", a), Peer: &figures})
	}
	one("ready_to_slice", "s", ours.latency, peer.latency)
	one("cpu_s", "s", []float64{ours.cpu}, []float64{peer.cpu})
	one("writes", "", []float64{ours.writes}, []float64{peer.writes})
	one("slice_writes", "", []float64{ours.sliceWrites}, []float64{peer.sliceWrites})
	one("rss_mb", "MB", []float64{ours.rss}, []float64{peer.rss})
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
