// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func init() { reexec.Register("burn", burn) }

// burn keeps a core busy.
func burn() int {
	for {
		runtime.KeepAlive(time.Now())
	}
}

// loaded counts what moves on busy cores, ours and the peer's.
func loaded(ctx context.Context, o *options, r *report.Report) error {
	if o.loaded == 0 {
		return nil
	}
	for _, lan := range []bool{false, true} {
		if lan && (o.check || o.peerCuts == 0) {
			continue // the peer is not asked for
		}
		name, side := "cores busy", ""
		if lan {
			name, side = "cores busy, "+peerName, peerName
		}
		moves, deaths, err := busy(ctx, o.loaded, lan)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for metric, n := range map[string]int{"false_failovers": moves, "false_detections": deaths} {
			r.Add(report.Line{Case: name, Metric: metric, Unit: "1/min", Ours: report.Summarise(side, []float64{float64(n) / o.loaded.Minutes()})})
		}
	}
	return nil
}

// busy counts how often the address moves, and how often a node is held dead,
// while every core has two processes too many.
func busy(ctx context.Context, d time.Duration, peer bool) (moves, deaths int, err error) {
	err = with(announcetest.Options{LAN: peer}, vip4, func(l *lan, _ *announcetest.Host) error {
		stop, err := load()
		defer stop()
		if err != nil {
			return err
		}
		since := time.Now()
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return ctx.Err()
		}
		dead := map[string]int{}
		for _, e := range l.Events(since) {
			switch {
			case e.Report == nil:
				deaths += max(len(e.Dead)-dead[e.Node], 0)
				dead[e.Node] = len(e.Dead)
			case e.Report.State == announce.Announced:
				moves++
			}
		}
		return nil
	})
	fmt.Fprintf(os.Stderr, "failover: %d moves, %d deaths in %v on busy cores\n", moves, deaths, d)
	return moves, deaths, err
}

// load keeps every core busy until stop is called.
func load() (stop func(), err error) {
	var running []*exec.Cmd
	stop = func() {
		for _, c := range running {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}
	for range 2 * runtime.NumCPU() {
		c := reexec.Command("burn")
		if err := c.Start(); err != nil {
			return stop, fmt.Errorf("start load: %w", err)
		}
		running = append(running, c)
	}
	return stop, nil
}
