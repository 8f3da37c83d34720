// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
)

// prepare leads all addresses to this machine, and answers at the endpoints'
// port with the address that a connection ended up at.
func prepare(ctx context.Context) (net.Listener, error) {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "add", proxybench.NodeAddress + "/32", "dev", "lo"},
		{"route", "add", "local", "10.96.0.0/12", "dev", "lo"},  // ClusterIPs
		{"route", "add", "local", "10.128.0.0/9", "dev", "lo"},  // endpoints
		{"route", "add", "local", "172.16.0.0/12", "dev", "lo"}, // endpoints that come later
	} {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	l, err := net.Listen("tcp4", ":"+strconv.Itoa(proxybench.EndpointPort))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, c.LocalAddr().String())
			_ = c.Close()
		}
	}()
	return l, nil
}

// dial connects to a Service and returns the endpoint that answered.
func dial(to netip.Addr) (netip.Addr, error) {
	c, err := net.DialTimeout("tcp4", netip.AddrPortFrom(to, 80).String(), time.Second)
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	said, err := io.ReadAll(c)
	if err != nil {
		return netip.Addr{}, err
	}
	at, err := netip.ParseAddrPort(string(said))
	return at.Addr(), err
}

var errGaveUp = errors.New("given up")

// until polls an outcome.
func until(ctx context.Context, limit time.Duration, ok func() bool) error {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errGaveUp
		}
	}
	return nil
}

// measurement is one run of one contender, on an empty kernel.
type measurement struct {
	cluster *proxybench.Cluster
	samples *samples
	wait    time.Duration
	changes int
}

func (m *measurement) run(ctx context.Context, who *proxybench.Contender) error {
	if err := empty(ctx); err != nil {
		return err
	}
	start := time.Now()
	p, err := who.Start(ctx)
	if err != nil {
		return err
	}
	err = m.follow(ctx, who, start)
	cpu := p.End()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tail())
	}
	if m.samples.gaveUp {
		return nil // its figures are of something half done
	}
	m.samples.cpu = append(m.samples.cpu, cpu)
	m.samples.rss = append(m.samples.rss, p.Peak())
	return nil
}

// empty removes what the last contender left in either variant.
func empty(ctx context.Context) error {
	script := `nft flush ruleset
for p in iptables-legacy ip6tables-legacy; do
  for t in nat filter mangle; do $p -w -t $t -F; $p -w -t $t -X; done
done`
	if out, err := exec.CommandContext(ctx, "sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("empty the kernel: %w: %s", err, out)
	}
	return nil
}

// spread are Services all over the range: a restore is one step, so that a few
// stand for all.
func (m *measurement) spread() []int {
	n := m.cluster.Services
	return []int{0, n / 7, n / 3, n / 2, n * 4 / 5, n - 1}
}

func (m *measurement) follow(ctx context.Context, who *proxybench.Contender, start time.Time) error {
	s := m.samples
	err := until(ctx, m.wait, func() bool {
		for _, i := range m.spread() {
			if _, err := dial(proxybench.ClusterIP(i)); err != nil {
				time.Sleep(10 * time.Millisecond) // the contender has work to do
				return false
			}
		}
		return true
	})
	if errors.Is(err, errGaveUp) {
		proxybench.Progress("%s: first sync not finished after %s", who.Name, m.wait)
		s.gaveUp = true
		s.fullSync, s.serving = append(s.fullSync, m.wait.Seconds()), append(s.serving, m.wait.Seconds())
		return nil
	}
	if err != nil {
		return err
	}
	s.serving = append(s.serving, time.Since(start).Seconds())
	took, _, err := who.FirstSync(ctx)
	if err != nil {
		return err
	}
	s.fullSync = append(s.fullSync, took)
	for round := range m.changes {
		took, err := m.endpointChange(ctx, round)
		if err != nil {
			return fmt.Errorf("change endpoint: %w", err)
		}
		s.endpointChange = append(s.endpointChange, took)
	}
	for range m.changes {
		took, err := m.serviceAdd(ctx)
		if err != nil {
			return fmt.Errorf("add Service: %w", err)
		}
		s.serviceAdd = append(s.serviceAdd, took)
	}
	return nil
}

const changeLimit = 2 * time.Minute

// settle lets kube-proxy finish what it does a second after a change.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(1500 * time.Millisecond):
		return nil
	}
}

func (m *measurement) endpointChange(ctx context.Context, round int) (float64, error) {
	if err := settle(ctx); err != nil {
		return 0, err
	}
	i, fresh, change := m.cluster.ReplaceEndpoint(round)
	start := time.Now()
	if err := change(ctx); err != nil {
		return 0, err
	}
	err := until(ctx, changeLimit, func() bool {
		at, err := dial(proxybench.ClusterIP(i))
		return err == nil && at == fresh
	})
	return time.Since(start).Seconds(), err
}

func (m *measurement) serviceAdd(ctx context.Context) (float64, error) {
	i, change, err := m.cluster.NewService(ctx)
	if err != nil {
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	start := time.Now()
	if err := change(ctx); err != nil {
		return 0, err
	}
	err = until(ctx, changeLimit, func() bool {
		_, err := dial(proxybench.ClusterIP(i))
		return err == nil
	})
	return time.Since(start).Seconds(), err
}
