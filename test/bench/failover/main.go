// SPDX-License-Identifier: Apache-2.0

// Command failover measures how long clients of a LoadBalancer address are
// without it when the announcing node is cut off from the LAN without warning,
// and whether loaded cores alone make an address move.
//
// Three nodes and a client are network namespaces on a bridge. The client sends
// a datagram every two milliseconds; its own kernel resolves the address. A cut
// takes the announcer's port out of the bridge: no carrier is lost, nothing is
// said. The peer is the same announcer with memberlist's settings for local
// networks and without direct probes, which is how MetalLB decides that a node
// is dead.
//
//	detect           cut -> another node holds the announcer dead
//	outage           cut -> first datagram echoed by another node
//	false_failovers  moves in a minute while all cores are kept busy
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/announcetest"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/test/bench/report"
)

var vip = netip.MustParseAddr("192.0.2.200")

// peerName is whose membership settings the peer has.
const peerName = "memberlist DefaultLANConfig (MetalLB's)"

func init() { reexec.Register("burn", burn) }

// burn keeps a core busy.
func burn() int {
	for {
		runtime.KeepAlive(time.Now())
	}
}

func main() {
	reexec.Init()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

func run() error {
	cuts := flag.Int("cuts", 100, "cuts of ours")
	peerCuts := flag.Int("peer-cuts", 12, "cuts of the peer, some seven seconds each")
	loaded := flag.Duration("loaded", time.Minute, "how long to watch for false failovers on busy cores")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	r := report.Report{Bench: "failover"}
	ours, err := measure(ctx, *cuts, false)
	if err != nil {
		return err
	}
	peer, err := measure(ctx, *peerCuts, true)
	if err != nil {
		return fmt.Errorf("peer: %w", err)
	}
	for _, metric := range []string{"detect", "outage"} {
		line := report.Line{Case: "3 nodes, cut off", Metric: metric, Unit: "s", Ours: report.Summarise("", ours[metric])}
		if len(peer[metric]) > 0 {
			theirs := report.Summarise(peerName, peer[metric])
			line.Peer = &theirs
		}
		r.Add(line)
	}
	for _, lan := range []bool{false, true} {
		name, side := "cores busy", ""
		if lan {
			name, side = "cores busy, "+peerName, peerName
		}
		moves, err := busy(ctx, *loaded, lan)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rate := float64(moves) / loaded.Minutes()
		r.Add(report.Line{Case: name, Metric: "false_failovers", Unit: "1/min", Ours: report.Summarise(side, []float64{rate})})
	}
	return r.Write(os.Stdout, "build/bench")
}

// with calls f with a LAN on which one node announces the address.
func with(lan bool, f func(*announcetest.LAN, *announcetest.Host) error) error {
	l, err := announcetest.New(announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip}, Echo: true, LAN: lan, Log: os.Getenv("ANNOUNCE_LOG") != ""})
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Start(); err != nil {
		return err
	}
	host, err := settle(l)
	if err != nil {
		return err
	}
	return f(l, host)
}

// settle waits until all nodes see each other and one announces, the same for
// half a second.
func settle(l *announcetest.LAN) (*announcetest.Host, error) {
	var host *announcetest.Host
	since := time.Now()
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var now []*announcetest.Host
		for _, h := range l.Nodes {
			if l.Last(vip)[h.Name].State == announce.Announced {
				now = append(now, h)
			}
		}
		if len(now) != 1 || now[0] != host || !complete(l) {
			host, since = nil, time.Now()
			if len(now) == 1 {
				host = now[0]
			}
			continue
		}
		if time.Since(since) > 500*time.Millisecond {
			return host, nil
		}
	}
	return nil, fmt.Errorf("the announcers did not settle: %+v", l.Last(vip))
}

// complete tells whether every node's last word is that all others are alive.
func complete(l *announcetest.LAN) bool {
	last := map[string]int{}
	for _, e := range l.Events(time.Time{}) {
		if e.Report == nil {
			last[e.Node] = len(e.Alive)
		}
	}
	for _, h := range l.Nodes {
		if last[h.Name] != len(l.Nodes)-1 {
			return false
		}
	}
	return true
}

// measure cuts the announcer off again and again.
func measure(ctx context.Context, cuts int, lan bool) (map[string][]float64, error) {
	out := map[string][]float64{}
	if cuts == 0 {
		return out, nil
	}
	err := with(lan, func(l *announcetest.LAN, host *announcetest.Host) error {
		for i := range cuts {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			detect, outage, err := cut(l, host)
			if err != nil {
				return err
			}
			out["detect"] = append(out["detect"], detect.Seconds())
			out["outage"] = append(out["outage"], outage.Seconds())
			fmt.Fprintf(os.Stderr, "\rfailover: cut %d of %d: detected after %3d ms, outage %3d ms   ", i+1, cuts, detect.Milliseconds(), outage.Milliseconds())
			if err := host.Mend(); err != nil {
				return err
			}
			if host, err = settle(l); err != nil {
				return err
			}
		}
		return nil
	})
	fmt.Fprintln(os.Stderr)
	return out, err
}

// cut takes the announcer off the LAN.
func cut(l *announcetest.LAN, host *announcetest.Host) (detect, outage time.Duration, err error) {
	stop := make(chan struct{})
	var at time.Time
	var cutErr error
	go func() {
		defer close(stop)
		time.Sleep(50 * time.Millisecond) // the client knows the announcer
		at = time.Now()
		if cutErr = host.Cut(); cutErr != nil {
			return
		}
		for deadline := at.Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if taken(l, host, at) {
				time.Sleep(100 * time.Millisecond) // the client has heard of it
				return
			}
		}
	}()
	_, echoes, err := l.Stream(vip, 2*time.Millisecond, stop)
	if err != nil || cutErr != nil {
		return 0, 0, fmt.Errorf("cut %s off: %w, %w", host.Name, err, cutErr)
	}
	i := slices.IndexFunc(echoes, func(e announcetest.Echo) bool { return e.Node != host.Name && e.At.After(at) })
	if i < 0 {
		return 0, 0, fmt.Errorf("no other node took over from %s", host.Name)
	}
	outage = echoes[i].At.Sub(at)
	for deadline := at.Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, e := range l.Events(at) {
			if e.Node != host.Name && slices.Contains(e.Dead, host.Name) {
				return e.At.Sub(at), outage, nil
			}
		}
	}
	return 0, 0, fmt.Errorf("nobody found %s dead", host.Name)
}

func taken(l *announcetest.LAN, host *announcetest.Host, since time.Time) bool {
	for _, e := range l.Events(since) {
		if e.Node != host.Name && e.Report != nil && e.Report.State == announce.Announced {
			return true
		}
	}
	return false
}

// busy counts how often the address moves while every core has two processes too
// many.
func busy(ctx context.Context, d time.Duration, lan bool) (int, error) {
	moves := 0
	err := with(lan, func(l *announcetest.LAN, _ *announcetest.Host) error {
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
		for _, e := range l.Events(since) {
			if e.Report != nil && e.Report.State == announce.Announced {
				moves++
			}
		}
		return nil
	})
	fmt.Fprintf(os.Stderr, "failover: %d moves in %v on busy cores\n", moves, d)
	return moves, err
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
