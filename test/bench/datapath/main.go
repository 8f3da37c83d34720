// SPDX-License-Identifier: Apache-2.0

// Command datapath measures what a new connection costs through a Service,
// beside the same connection without translation and through kube-proxy's rules:
//
//	client ns -- this ns, the node -- server ns
//
// The client connects to the server's address and to a ClusterIP that leads to
// the same server, in turns, so that whatever else the machine does meets both
// alike. Both programs' rules cannot be there at a time, so kube-proxy's turns
// come after ours; figures of a case are over rounds: the median of each round's
// p50, and so on. BENCH_SIZES (default 1,10000,50000) are numbers of Services, of
// 5 endpoints each, BENCH_PEER (default 1,10000) those of them that kube-proxy
// is measured with; BENCH_ROUNDS is 20.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

const (
	perRound    = 300                    // connections a round, one after the other
	rateFor     = 300 * time.Millisecond // time of a rate round
	rateWorkers = 4
	directName  = "no translation"
)

var (
	// clientAddr is one of the node's Pods: nobody masquerades it.
	clientAddr = netip.MustParseAddr("10.244.1.100")
	serverAddr = netip.MustParseAddr("198.51.100.10")
	direct     = netip.AddrPortFrom(serverAddr, serverPort)
)

// serverAddrs are the endpoints of the Service that is dialled.
func serverAddrs() []netip.Addr {
	addrs := []netip.Addr{serverAddr}
	for len(addrs) < proxybench.EndpointsEach {
		addrs = append(addrs, addrs[len(addrs)-1].Next())
	}
	return addrs
}

func main() { os.Exit(proxybench.Main(bench)) }

func bench(ctx context.Context) error {
	sizes, err := proxybench.Numbers("BENCH_SIZES", "1,10000,50000")
	if err != nil {
		return err
	}
	peers, err := proxybench.Numbers("BENCH_PEER", "1,10000")
	if err != nil {
		return err
	}
	rounds, err := proxybench.Numbers("BENCH_ROUNDS", "20")
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
		var ours, without figures
		if err := net.ours(ctx, n, rounds[0], &ours, &without); err != nil {
			return fmt.Errorf("%d Services: %w", n, err)
		}
		add(result, n, directName, &ours, &without)
		if !slices.Contains(peers, n) {
			continue
		}
		var peer figures
		name, err := net.kubeProxy(ctx, n, rounds[0], &peer)
		if err != nil {
			return fmt.Errorf("%d Services, kube-proxy: %w", n, err)
		}
		add(result, n, name, &ours, &peer)
	}
	return result.Write(os.Stdout, "build/bench")
}

func add(result *report.Report, services int, peerName string, ours, peer *figures) {
	line := func(metric, unit string, a, b []float64, more bool) {
		p := report.Summarise(peerName, b)
		result.Add(report.Line{
			Case: fmt.Sprintf("%d Services", services), Metric: metric, Unit: unit,
			Ours: report.Summarise("", a), Peer: &p, MoreIsBetter: more,
		})
	}
	line("connect_p10", "s", ours.p10, peer.p10, false)
	line("connect_p50", "s", ours.p50, peer.p50, false)
	line("connect_p99", "s", ours.p99, peer.p99, false)
	line("connections_per_s", "1/s", ours.rate, peer.rate, true)
}

// ours measures through n Services of this program's, and without.
func (n *network) ours(ctx context.Context, services, rounds int, through, without *figures) error {
	b, err := nftables.New(nftables.Config{Families: []model.Family{model.IPv4}})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := b.Resync(ctx, desired(services)); err != nil {
		return err
	}
	if err := n.rounds(ctx, "ours", services, rounds, through, without); err != nil {
		return err
	}
	return b.Cleanup(ctx)
}

// kubeProxy measures through n Services of kube-proxy's, whose name it returns.
func (n *network) kubeProxy(ctx context.Context, services, rounds int, through *figures) (string, error) {
	proxybench.Progress("%d Services: API server", services)
	c, err := proxybench.StartCluster(ctx, services)
	if err != nil {
		return "", err
	}
	defer c.Stop()
	sl := proxybench.Slice(services/2, serverAddrs()...)
	sl.UID = "" // an update without conditions
	if _, err := c.Kube.DiscoveryV1().EndpointSlices(proxybench.Namespace).Update(ctx, sl, metav1.UpdateOptions{}); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "datapath-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	_, peer, err := proxybench.Pair(ctx, c, dir, "nftables")
	if err != nil {
		return "", err
	}
	p, err := peer.Start(ctx)
	if err != nil {
		return "", err
	}
	_, _, err = peer.FirstSync(ctx)
	var without figures
	if err == nil {
		err = n.rounds(ctx, peer.Name, services, rounds, through, &without)
	}
	p.End()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, p.Tail())
	}
	if out, err := exec.CommandContext(ctx, "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		return "", fmt.Errorf("remove kube-proxy's rules: %w: %s", err, out)
	}
	return peer.Name, nil
}

// rounds dials the server's address and the Service in the middle in turns.
func (n *network) rounds(ctx context.Context, who string, services, rounds int, through, without *figures) error {
	to := netip.AddrPortFrom(proxybench.ClusterIP(services/2), 80)
	for r := range rounds {
		proxybench.Progress("%d Services, %s, round %d of %d", services, who, r+1, rounds)
		if err := n.round(ctx, direct, without); err != nil {
			return fmt.Errorf("direct: %w", err)
		}
		if err := n.round(ctx, to, through); err != nil {
			return fmt.Errorf("through a Service: %w", err)
		}
	}
	return nil
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

// desired gives n Services. All endpoints of the one that is dialled are the
// server.
func desired(n int) model.Desired {
	d := model.Desired{Services: make(map[types.NamespacedName]*model.Service, n)}
	d.Node.PodCIDRs = []netip.Prefix{netip.PrefixFrom(clientAddr, 32)}
	for i := range n {
		addrs := proxybench.EndpointsOf(i)
		if i == n/2 {
			addrs = serverAddrs()
		}
		t := &model.Target{}
		for _, a := range addrs {
			t.Endpoints = append(t.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(a, serverPort), Weight: 1})
		}
		name := types.NamespacedName{Namespace: proxybench.Namespace, Name: proxybench.ServiceName(i)}
		d.Services[name] = &model.Service{Name: name, Frontends: []model.Frontend{{
			Key: model.Key{Addr: proxybench.ClusterIP(i), Port: 80, Protocol: model.TCP}, Inside: t, Outside: t,
		}}}
	}
	return d
}
