// SPDX-License-Identifier: Apache-2.0

// Command datapath measures what a new connection costs through a Service,
// beside the same connection without translation:
//
//	client ns -- node ns (rules) -- server ns
//
// The client connects to the server's address (the peer) and to a ClusterIP
// that leads to the same server, in turns, so that whatever else the machine
// does meets both alike. Figures of a case are over rounds: the median of each
// round's p50, and so on. BENCH_SIZES (default 1,10000,50000) are numbers of
// Services, of 5 endpoints each; BENCH_ROUNDS is 20.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/test/bench/report"
)

const (
	perRound    = 300                    // connections a round, one after the other
	rateFor     = 300 * time.Millisecond // time of a rate round
	rateWorkers = 4
	peerName    = "no translation"
)

var (
	clientAddr = netip.MustParseAddr("192.0.2.100")
	serverAddr = netip.MustParseAddr("198.51.100.10")
	direct     = netip.AddrPortFrom(serverAddr, serverPort)
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "datapath:", err)
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
	for s := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 || n > 60000 {
			return nil, fmt.Errorf("%s=%s: must be numbers from 1 to 60000", variable, text)
		}
		out = append(out, n)
	}
	return out, nil
}

func bench(ctx context.Context) error {
	sizes, err := numbers("BENCH_SIZES", "1,10000,50000")
	if err != nil {
		return err
	}
	rounds, err := numbers("BENCH_ROUNDS", "20")
	if err != nil {
		return err
	}
	net, err := newNetwork(ctx)
	if err != nil {
		return err
	}
	defer net.close()
	result := &report.Report{Bench: "datapath"}
	for _, n := range sizes {
		if err := one(ctx, net, result, n, rounds[0]); err != nil {
			return fmt.Errorf("%d Services: %w", n, err)
		}
	}
	return result.Write(os.Stdout, "build/bench")
}

func one(ctx context.Context, net *network, result *report.Report, n, rounds int) error {
	var b *nftables.Backend
	err := net.node.do(func() error {
		var err error
		b, err = nftables.New(nftables.Config{Families: []model.Family{model.IPv4}})
		return err
	})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := b.Sync(ctx, desired(n), nil); err != nil {
		return err
	}
	through := netip.AddrPortFrom(clusterIP(n/2), 80)
	var ours, peer figures
	for r := range rounds {
		fmt.Fprintf(os.Stderr, "%s %d Services, round %d of %d\n", time.Now().Format("15:04:05"), n, r+1, rounds)
		if err := net.round(ctx, direct, &peer); err != nil {
			return fmt.Errorf("direct: %w", err)
		}
		if err := net.round(ctx, through, &ours); err != nil {
			return fmt.Errorf("through a Service: %w", err)
		}
	}
	name := fmt.Sprintf("%d Services", n)
	line := func(metric, unit string, a, b []float64, more bool) {
		p := report.Summarise(peerName, b)
		result.Add(report.Line{Case: name, Metric: metric, Unit: unit, Ours: report.Summarise("", a), Peer: &p, MoreIsBetter: more})
	}
	line("connect_p10", "s", ours.p10, peer.p10, false)
	line("connect_p50", "s", ours.p50, peer.p50, false)
	line("connect_p99", "s", ours.p99, peer.p99, false)
	line("connections_per_s", "1/s", ours.rate, peer.rate, true)
	return b.Cleanup(ctx)
}

// figures are one per round.
type figures struct{ p10, p50, p99, rate []float64 }

// round connects one by one, and then as fast as it goes.
func (n *network) round(ctx context.Context, to netip.AddrPort, f *figures) error {
	took := make([]float64, 0, perRound)
	err := n.client.do(func() error {
		for range perRound {
			d, err := connect(to)
			if err != nil {
				return err
			}
			took = append(took, d.Seconds())
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	slices.Sort(took)
	f.p10 = append(f.p10, took[len(took)/10])
	f.p50 = append(f.p50, took[len(took)/2])
	f.p99 = append(f.p99, took[len(took)*99/100])
	rate, err := n.rate(ctx, to)
	f.rate = append(f.rate, rate)
	return err
}

func (n *network) rate(ctx context.Context, to netip.AddrPort) (float64, error) {
	var count atomic.Int64
	errs := make([]error, rateWorkers)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range rateWorkers {
		wg.Go(func() {
			errs[w] = n.client.do(func() error {
				for time.Since(start) < rateFor && ctx.Err() == nil {
					if _, err := connect(to); err != nil {
						return err
					}
					count.Add(1)
				}
				return ctx.Err()
			})
		})
	}
	wg.Wait()
	return float64(count.Load()) / time.Since(start).Seconds(), errors.Join(errs...)
}

func clusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, byte((i + 16) >> 8), byte(i + 16)})
}

// desired gives n Services. All endpoints of the one that is dialled are the
// server.
func desired(n int) model.Desired {
	d := model.Desired{Services: make(map[types.NamespacedName]*model.Service, n)}
	d.Node.PodCIDRs = []netip.Prefix{netip.PrefixFrom(clientAddr, 32)}
	for i := range n {
		t := &model.Target{}
		for e := range 5 {
			k := i*5 + e
			a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(128 + k>>16), byte(k >> 8), byte(k)}), 8080)
			if i == n/2 {
				a = netip.AddrPortFrom(serverAddr, serverPort+uint16(e))
			}
			t.Endpoints = append(t.Endpoints, model.Endpoint{AddrPort: a, Weight: 1})
		}
		name := types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}
		d.Services[name] = &model.Service{Name: name, Frontends: []model.Frontend{{
			Key: model.Key{Addr: clusterIP(i), Port: 80, Protocol: model.TCP}, Inside: t, Outside: t,
		}}}
	}
	return d
}
