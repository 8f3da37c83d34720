// SPDX-License-Identifier: Apache-2.0

// Command end-to-end measures how long it takes from the write that makes a
// Pod ready until a client on the LAN reaches it through the LoadBalancer
// address: API server, slice, the nodes' watches, their kernels, and back.
//
//	Pod's status ──> API server ──> slice ──> every node's kernel
//	   | written by this program                      |
//	   +-- pod_ready_to_first_packet -----------------+--> client's connect succeeds
//
// Two labs run one after the other, with the same nodes, Services and Pods:
// in one Causeway keeps slices and forwards; in the other these are
// kube-controller-manager's and kube-proxy's (nftables), with their defaults,
// and Causeway only hands out and announces the addresses. Until its Pod is
// ready a Service refuses connections, so the client may ask all the time.
//
// Of the Services some have a LoadBalancer address and one Pod each, which is
// measured; the others have two ready Pods. These Pods are objects on a Node
// that this program plays the kubelet of. What answers is a server in a Pod of
// the lab, whose address the measured Pods have.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/test/bench/report"
)

func main() {
	reexec.Init()
	os.Exit(run())
}

// options are the program's flags, the same outside and inside a lab.
type options struct {
	services, samples, peerSamples int

	// side and out are set for the run inside a lab: which of the two this is,
	// and the file that its samples go to.
	side, out string
}

const ours, peer = "causeway", "peer"

func run() int {
	var o options
	flag.IntVar(&o.services, "services", 1000, "how many Services there are")
	flag.IntVar(&o.samples, "samples", 300, "how often a Pod becomes ready under Causeway")
	flag.IntVar(&o.peerSamples, "peer-samples", 60, "how often under the peer, two seconds each")
	flag.StringVar(&o.side, "side", "", "set by this program when it runs itself inside a lab")
	flag.StringVar(&o.out, "out", "", "likewise")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	setup, err := lab.Inside()
	switch {
	case err != nil:
	case setup != nil:
		err = inside(ctx, *setup, o)
	default:
		err = bench(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end:", err)
		return 1
	}
	return 0
}

// bench runs both sides and reports.
func bench(ctx context.Context, o options) error {
	if o.services <= measured || o.samples < 1 || o.peerSamples < 1 {
		return fmt.Errorf("flags: more than %d Services and at least one sample are needed", measured)
	}
	if err := lab.InstallMissing(ctx, os.Stderr, false); err != nil {
		return err
	}
	we, _, err := enter(ctx, o, ours)
	if err != nil {
		return err
	}
	they, version, err := enter(ctx, o, peer)
	if err != nil {
		return err
	}
	theirs := report.Summarise("kube-controller-manager and kube-proxy nftables "+version, they)
	result := &report.Report{Bench: "end-to-end"}
	result.Add(report.Line{
		Case: fmt.Sprintf("%d-services", o.services), Metric: "pod_ready_to_first_packet", Unit: "s",
		Ours: report.Summarise("", we), Peer: &theirs,
	})
	return result.Write(os.Stdout, "build/bench")
}

// outcome is what the run inside a lab hands out.
type outcome struct {
	Seconds []float64
	Version string // the control plane's
}

// enter runs one side in a lab of its own.
func enter(ctx context.Context, o options, side string) ([]float64, string, error) {
	setup, err := lab.Prepare(ctx, fmt.Sprintf("e2e-%s-%d", side, os.Getpid()))
	if err != nil {
		return nil, "", err
	}
	if side == peer {
		if err := lab.WithKubeProxy(ctx, &setup); err != nil {
			return nil, "", err
		}
	}
	dir, err := os.MkdirTemp("", "bench-end-to-end-")
	if err != nil {
		return nil, "", err
	}
	defer os.RemoveAll(dir)
	out, samples := filepath.Join(dir, "outcome.json"), o.samples
	if side == peer {
		samples = o.peerSamples
	}
	code, err := lab.Enter(ctx, setup, []string{os.Args[0],
		fmt.Sprintf("-services=%d", o.services), fmt.Sprintf("-samples=%d", samples), "-side=" + side, "-out=" + out})
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", side, err)
	}
	if code != 0 {
		return nil, "", fmt.Errorf("%s: exit status %d; logs are in %s", side, code, lab.StateDir(setup.Name))
	}
	data, err := os.ReadFile(out)
	if err != nil {
		return nil, "", fmt.Errorf("read outcome: %w", err)
	}
	var result outcome
	if err := json.Unmarshal(data, &result); err != nil {
		return nil, "", fmt.Errorf("decode outcome: %w", err)
	}
	return result.Seconds, result.Version, os.RemoveAll(lab.StateDir(setup.Name))
}

// inside starts the cluster, takes the samples and writes them down.
func inside(ctx context.Context, setup lab.Setup, o options) error {
	l, err := lab.Start(ctx, setup, func(text string) { progress("%s", text) })
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	install := installOurs
	if o.side == peer {
		install = installPeer
	}
	if err := install(ctx, l); err != nil {
		return err
	}
	c := &cluster{lab: l}
	if err := c.load(ctx, o.services); err != nil {
		return err
	}
	version, err := l.Kubernetes.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("ask for version: %w", err)
	}
	result := outcome{Version: version.GitVersion}
	for i := range o.samples {
		took, err := c.sample(ctx, c.meters[i%len(c.meters)])
		if err != nil {
			return err
		}
		result.Seconds = append(result.Seconds, took.Seconds())
	}
	data, err := json.Marshal(result)
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.out, data, 0o644); err != nil {
		return fmt.Errorf("write outcome: %w", err)
	}
	return errors.Join(ctx.Err())
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
