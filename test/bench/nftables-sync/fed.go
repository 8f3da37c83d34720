// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/causeway-lb/causeway/internal/agent"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

const fedChanges = 1000

// benchFed measures from the event to the commit, without an API server.
func benchFed(ctx context.Context, result *report.Report, n, runs int) error {
	var s samples
	for r := range runs {
		if err := fedRun(ctx, &s, n, r == runs-1); err != nil {
			return err
		}
	}
	add(result, fmt.Sprintf("%dx%d fed", n, proxybench.EndpointsEach), s, nil, "")
	return nil
}

func fedRun(ctx context.Context, s *samples, n int, changes bool) error {
	// The agent's way to a backend.
	b, err := modes.New(modes.Config{Mode: modes.NFTables, Kinds: map[modes.Mode]modes.Kind{
		modes.NFTables: {Open: func() (backend.Backend, error) { return nftables.New(nftables.Config{}) }},
	}})
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Cleanup(ctx); err != nil {
		return err
	}
	store := agent.NewStore()
	services, slices := store.ServiceFeed(), store.SliceFeed()
	for i := range n {
		if err := errors.Join(services.Add(proxybench.Service(i)), slices.Add(proxybench.Slice(i, proxybench.EndpointsOf(i)...))); err != nil {
			return err
		}
	}
	debug.FreeOSMemory()
	applied := make(chan syncer.Applied, 1)
	sy, err := syncer.New(syncer.Config{
		Backend: b, Source: store, Node: model.Node{Name: proxybench.NodeName},
		Applied: func(a syncer.Applied) { applied <- a },
	})
	if err != nil {
		return err
	}
	store.Listen(func(e agent.Event) { sy.Notify(e.Name, e.Trigger) })
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- sy.Run(run) }()
	defer func() {
		stop()
		if err := errors.Join(<-done, b.Cleanup(context.WithoutCancel(ctx))); err != nil {
			proxybench.Progress("end of run: %v", err)
		}
	}()
	select {
	case <-applied:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.fullSync = append(s.fullSync, time.Since(start).Seconds())
	// The watch's first notification has the kernel read back once more.
	quiet(applied)
	if !changes {
		return nil
	}
	runtime.GC()
	for k := range fedChanges {
		i := (k*7919 + 3) % n
		addrs := append([]netip.Addr{proxybench.SpareAddr(k + 1)}, proxybench.EndpointsOf(i)[1:]...)
		sl := proxybench.Slice(i, addrs...)
		took, err := fedChange(ctx, applied, i, func() error { return slices.Update(sl) })
		if err != nil {
			return err
		}
		s.endpointChange = append(s.endpointChange, took)
	}
	for k := range fedChanges {
		i := n + k
		if err := slices.Add(proxybench.Slice(i, proxybench.EndpointsOf(i)...)); err != nil {
			return err
		}
		svc := proxybench.Service(i)
		took, err := fedChange(ctx, applied, i, func() error { return services.Add(svc) })
		if err != nil {
			return err
		}
		s.serviceAdd = append(s.serviceAdd, took)
	}
	quiet(applied)
	return fedRepairs(ctx, s, applied)
}

const fedRepairsEach = 5

// fedRepairs measures from somebody else's transaction to the commit that makes
// good for it.
func fedRepairs(ctx context.Context, s *samples, applied <-chan syncer.Applied) error {
	other, err := nft.Dial()
	if err != nil {
		return err
	}
	defer other.Close()
	table := nft.Table{Family: nft.FamilyIPv4, Name: nftables.TableName}
	var element, flush nft.Batch
	element.DeleteElement(table, "services", nft.Element{Key: string(proxybench.FrontendKey(proxybench.ClusterIP(1)))})
	flush.DeleteTable(table)
	flush.DeleteTable(nft.Table{Family: nft.FamilyIPv6, Name: nftables.TableName})
	for range fedRepairsEach {
		for _, harm := range []struct {
			tx   *nft.Batch
			took *[]float64
		}{{&element, &s.repairElement}, {&flush, &s.repairFlush}} {
			start := time.Now()
			if err := other.Commit(harm.tx); err != nil {
				return fmt.Errorf("do harm: %w", err)
			}
			for repaired := false; !repaired; {
				select {
				case a := <-applied:
					repaired = a.Report.Drift > 0
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			*harm.took = append(*harm.took, time.Since(start).Seconds())
			quiet(applied)
		}
	}
	return nil
}

// quiet waits until nothing was applied for a while.
func quiet(applied <-chan syncer.Applied) {
	for {
		select {
		case <-applied:
		case <-time.After(2 * time.Second):
			return
		}
	}
}

// fedChange measures from what a reflector calls with a decoded object of the
// watch to the return of the commit that carries it.
func fedChange(ctx context.Context, applied <-chan syncer.Applied, i int, deliver func() error) (float64, error) {
	start := time.Now()
	if err := deliver(); err != nil {
		return 0, err
	}
	for {
		select {
		case a := <-applied:
			for _, c := range a.Changes {
				if c.Name.Name == proxybench.ServiceName(i) {
					return time.Since(start).Seconds(), nil
				}
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
