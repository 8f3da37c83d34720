// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
	"github.com/causeway-lb/causeway/test/bench/proxybench"
	"github.com/causeway-lb/causeway/test/bench/report"
)

// source is a syncer's Source in memory.
type source struct {
	mu     sync.RWMutex
	inputs map[types.NamespacedName]model.Input
}

func (s *source) Names() []types.NamespacedName {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]types.NamespacedName, 0, len(s.inputs))
	for n := range s.inputs {
		names = append(names, n)
	}
	return names
}

func (s *source) Input(n types.NamespacedName) (model.Input, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	in, ok := s.inputs[n]
	return in, ok
}

func (s *source) set(in model.Input) types.NamespacedName {
	n := types.NamespacedName{Namespace: in.Service.Namespace, Name: in.Service.Name}
	s.mu.Lock()
	s.inputs[n] = in
	s.mu.Unlock()
	return n
}

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
	b, err := nftables.New(nftables.Config{})
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Cleanup(ctx); err != nil {
		return err
	}
	src := &source{inputs: map[types.NamespacedName]model.Input{}}
	for i := range n {
		src.set(model.Input{Service: proxybench.Service(i), Slices: []*discoveryv1.EndpointSlice{proxybench.Slice(i, proxybench.EndpointsOf(i)...)}})
	}
	debug.FreeOSMemory()
	applied := make(chan syncer.Applied, 1)
	sy, err := syncer.New(syncer.Config{
		Backend: b, Source: src, Node: model.Node{Name: proxybench.NodeName},
		Applied: func(a syncer.Applied) { applied <- a },
	})
	if err != nil {
		return err
	}
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
		took, err := fedChange(ctx, sy, src, applied, proxybench.Slice(i, addrs...), i)
		if err != nil {
			return err
		}
		s.endpointChange = append(s.endpointChange, took)
	}
	for k := range fedChanges {
		took, err := fedChange(ctx, sy, src, applied, proxybench.Slice(n+k, proxybench.EndpointsOf(n+k)...), n+k)
		if err != nil {
			return err
		}
		s.serviceAdd = append(s.serviceAdd, took)
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

func fedChange(ctx context.Context, sy *syncer.Syncer, src *source, applied <-chan syncer.Applied, sl *discoveryv1.EndpointSlice, i int) (float64, error) {
	name := src.set(model.Input{Service: proxybench.Service(i), Slices: []*discoveryv1.EndpointSlice{sl}})
	start := time.Now()
	sy.Notify(name, time.Time{})
	for {
		select {
		case a := <-applied:
			for _, c := range a.Changes {
				if c.Name == name {
					return time.Since(start).Seconds(), nil
				}
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
