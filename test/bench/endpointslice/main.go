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
// one Service, and 5,000 Services of 3 Pods.
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
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() { os.Exit(run()) }

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
	for _, one := range []struct {
		name string
		run  func(context.Context, *clusterAPI, *contender, size) (samples, error)
		load func(context.Context, *clusterAPI, size) error
	}{
		{fmt.Sprintf("one-service-%d-pods", sizes.onePods), oneService, nil},
		{fmt.Sprintf("%d-services", sizes.services), manyServices, loadManyServices},
	} {
		if one.load != nil {
			if err := one.load(ctx, cluster, sizes); err != nil {
				return fmt.Errorf("%s: %w", one.name, err)
			}
		}
		var both [2]samples
		for i, c := range []*contender{contenders.ours, contenders.peer} {
			progress("%s: %s", one.name, c.name)
			if both[i], err = one.run(ctx, cluster, c, sizes); err != nil {
				return fmt.Errorf("%s: %s: %w", one.name, c.name, err)
			}
			if err := cluster.deleteSlices(ctx); err != nil {
				return err
			}
		}
		add(result, one.name, both[0], both[1], contenders.peer.name)
	}
	return result.Write(os.Stdout, "build/bench")
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
