// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"time"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
)

// measure starts the contender on an empty kernel and, if changes, has it
// follow changes.
func measure(ctx context.Context, c *proxybench.Contender, cl *proxybench.Cluster, s *samples, changes bool) error {
	if out, err := exec.CommandContext(ctx, "nft", "flush", "ruleset").CombinedOutput(); err != nil {
		return fmt.Errorf("empty the kernel: %w: %s", err, out)
	}
	p, err := c.Start(ctx)
	if err != nil {
		return err
	}
	err = follow(ctx, c, cl, s, changes)
	cpu := p.End()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.Tail())
	}
	s.cpu = append(s.cpu, cpu)
	s.rss = append(s.rss, p.Peak())
	return nil
}

const (
	changeLimit = time.Minute
	changesEach = 20
)

func follow(ctx context.Context, c *proxybench.Contender, cl *proxybench.Cluster, s *samples, changes bool) error {
	begun := time.Now()
	took, syncs, err := c.FirstSync(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("first sync: %w", err)
	case syncs > 1:
		return fmt.Errorf("%s had made %d syncs before it was asked for the first", c.Name, syncs)
	}
	s.start = append(s.start, time.Since(begun).Seconds())
	s.fullSync = append(s.fullSync, took)
	if err := hasElement(ctx, proxybench.ClusterIP(cl.Services-1)); err != nil {
		return err
	}
	if !changes {
		return nil
	}
	// Not before: the kernel writes a notification of every element for it.
	o, err := newObserver()
	if err != nil {
		return err
	}
	defer o.close()
	for i := range changesEach {
		if err := settle(ctx); err != nil {
			return err
		}
		took, err := changeEndpoint(ctx, cl, o, i)
		if err != nil {
			return fmt.Errorf("change endpoint: %w", err)
		}
		s.endpointChange = append(s.endpointChange, took.Seconds())
	}
	for range changesEach {
		if err := settle(ctx); err != nil {
			return err
		}
		took, err := addService(ctx, cl, o)
		if err != nil {
			return fmt.Errorf("add Service: %w", err)
		}
		s.serviceAdd = append(s.serviceAdd, took.Seconds())
	}
	return nil
}

// hasElement checks that the first sync programmed a Service.
func hasElement(ctx context.Context, a netip.Addr) error {
	out, err := exec.CommandContext(ctx, "nft", "list", "ruleset").Output()
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	if !bytes.Contains(out, []byte(a.String()+" . tcp . 80")) {
		return fmt.Errorf("%s is not programmed after the first sync", a)
	}
	return nil
}

// settle lets kube-proxy finish what it does a second after a change.
func settle(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(1500 * time.Millisecond):
		return nil
	}
}

// changeEndpoint replaces one endpoint of a Service and waits for the commit.
func changeEndpoint(ctx context.Context, c *proxybench.Cluster, o *observer, round int) (time.Duration, error) {
	_, fresh, change := c.ReplaceEndpoint(round)
	o.drain()
	start := time.Now()
	if err := change(ctx); err != nil {
		return 0, err
	}
	err := o.await(ctx, changeLimit, endpointPatterns(fresh)...)
	return time.Since(start), err
}

// addService adds a Service with its endpoints and waits for the commit.
func addService(ctx context.Context, c *proxybench.Cluster, o *observer) (time.Duration, error) {
	i, change, err := c.NewService(ctx)
	if err != nil {
		return 0, err
	}
	if err := settle(ctx); err != nil {
		return 0, err
	}
	o.drain()
	start := time.Now()
	if err := change(ctx); err != nil {
		return 0, err
	}
	err = o.await(ctx, changeLimit, frontendPatterns(proxybench.ClusterIP(i))...)
	return time.Since(start), err
}
