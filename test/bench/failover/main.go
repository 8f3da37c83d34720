// SPDX-License-Identifier: Apache-2.0

// Command failover measures what clients of a LoadBalancer address see when the
// node that announces it goes, and whether it is left alone when nothing is wrong.
//
// Nodes and a client are network namespaces on a bridge. The client sends a
// datagram every two milliseconds; its own kernel resolves the address. The peer is
// the same announcer with memberlist's settings for local networks and without
// direct probes, which is how MetalLB decides that a node is dead.
//
//	cut        the announcer's port is taken out of the bridge: no carrier is
//	           lost, nothing is said. detect: until another node holds it dead,
//	           outage: until a datagram is echoed by another node
//	link-down  the announcer sees its own link go; gossip has another network
//	planned    the agent is told to stop, or killed, at 200 datagrams a second:
//	           how many are lost, and for how long a question goes unanswered
//	many       2,000 addresses on one node: until all are announced, from the
//	           start of the process; and how long one answer takes
//	partition  five nodes part into two and three and join again; then gossip is
//	           blocked while the LAN works. For how long a question has two
//	           answers, and none
//	loaded     every core has two processes too many: how often the address
//	           moves, and a node is held dead, though nothing has failed
//
// With -check it fails unless the figures keep the bounds that CI holds them to,
// which leave a margin for machines that are not idle.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// peerName is whose membership settings the peer has.
const peerName = "memberlist DefaultLANConfig (MetalLB's)"

func main() {
	reexec.Init()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "failover:", err)
		os.Exit(1)
	}
}

// options say how much of each case is done.
type options struct {
	cuts, cuts6, peerCuts int
	linkDowns             int
	planned               int
	starts                int
	rounds                int
	loaded                time.Duration
	check                 bool
}

// cases in the order in which they run.
var cases = []struct {
	name string
	run  func(ctx context.Context, o *options, r *report.Report) error
}{
	{"cut", cutOff},
	{"link-down", linkDown},
	{"planned", planned},
	{"many", many},
	{"partition", partition},
	{"loaded", loaded},
}

func run() error {
	var o options
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	only := flag.String("only", strings.Join(names, ","), "cases to run")
	flag.IntVar(&o.cuts, "cuts", 100, "cuts of ours for IPv4")
	flag.IntVar(&o.cuts6, "cuts6", 20, "cuts of ours for IPv6")
	flag.IntVar(&o.peerCuts, "peer-cuts", 12, "cuts of the peer, some seven seconds each; 0 leaves the peer out everywhere")
	flag.IntVar(&o.linkDowns, "link-downs", 20, "how often a link goes down")
	flag.IntVar(&o.planned, "planned", 10, "how often an agent is told to stop, and how often one is killed")
	flag.IntVar(&o.starts, "starts", 5, "how often 2,000 addresses are announced from the start")
	flag.IntVar(&o.rounds, "rounds", 20, "partitions of each kind")
	flag.DurationVar(&o.loaded, "loaded", time.Minute, "how long to watch for false failovers on busy cores")
	flag.BoolVar(&o.check, "check", false, "fail unless the figures keep CI's bounds; nothing is written but build/bench/failover-check.json")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no case %q: choose from %s", name, strings.Join(names, ", "))
		}
	}
	r := report.Report{Bench: "failover"}
	if o.check {
		r.Bench = "failover-check"
	}
	for _, c := range cases {
		if !slices.Contains(chosen, c.name) {
			continue
		}
		if err := c.run(ctx, &o, &r); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if err := r.Write(os.Stdout, "build/bench"); err != nil || !o.check {
		return err
	}
	return check(r.Lines())
}

// bounds are what CI holds p99 to. The product promises less than half of it on
// an idle machine.
var bounds = map[string]float64{
	"outage":           1,
	"lost":             0,
	"unanswered":       1.5,
	"announced":        4,
	"answered_twice":   2,
	"answered_never":   2,
	"false_failovers":  0,
	"false_detections": 0,
}

func check(lines []report.Line) error {
	var broken []string
	for _, l := range lines {
		if bound, ok := bounds[l.Metric]; ok && l.Ours.Name == "" && !(l.Ours.P99 <= bound) {
			broken = append(broken, fmt.Sprintf("%s: %s p99 is %.3f %s, at most %v is allowed", l.Case, l.Metric, l.Ours.P99, l.Unit, bound))
		}
	}
	if len(broken) > 0 {
		return fmt.Errorf("the figures do not hold:\n%s", strings.Join(broken, "\n"))
	}
	return nil
}

// progress shows one line that the next replaces.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "\rfailover: %-100s", fmt.Sprintf(format, args...))
}
