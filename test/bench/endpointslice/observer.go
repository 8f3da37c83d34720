// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// observer watches the slices and times how long a change of a Pod takes to
// show in them.
type observer struct {
	watch watch.Interface
	done  chan struct{}

	mu      sync.Mutex
	waiting map[string]change // by Pod
	seen    map[string]bool   // Pod -> ready, as the slices have it
	slices  map[string]int    // endpoints by slice
	latency []float64
	writes  int
	idle    chan struct{} // closed once met
	met     func() bool
}

type change struct {
	at    time.Time
	ready bool
}

func (c *clusterAPI) observe(ctx context.Context) (*observer, error) {
	stream, err := c.client.Watch(ctx, &discoveryv1.EndpointSliceList{}, client.InNamespace(namespace))
	if err != nil {
		return nil, fmt.Errorf("watch slices: %w", err)
	}
	o := &observer{
		watch: stream, done: make(chan struct{}),
		waiting: map[string]change{}, seen: map[string]bool{}, slices: map[string]int{},
	}
	go o.run()
	return o, nil
}

func (o *observer) stop() {
	o.watch.Stop()
	<-o.done
}

func (o *observer) run() {
	defer close(o.done)
	for event := range o.watch.ResultChan() {
		slice, ok := event.Object.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		o.saw(slice, event.Type, time.Now())
	}
}

func (o *observer) saw(slice *discoveryv1.EndpointSlice, kind watch.EventType, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes++
	defer func() {
		if o.idle != nil && o.met() {
			close(o.idle)
			o.idle = nil
		}
	}()
	if kind == watch.Deleted {
		delete(o.slices, slice.Name)
		return
	}
	o.slices[slice.Name] = len(slice.Endpoints)
	for i := range slice.Endpoints {
		endpoint := &slice.Endpoints[i]
		name, ready := endpoint.TargetRef.Name, *endpoint.Conditions.Ready
		o.seen[name] = ready
		if wanted, ok := o.waiting[name]; ok && wanted.ready == ready {
			o.latency = append(o.latency, now.Sub(wanted.at).Seconds())
			delete(o.waiting, name)
		}
	}
}

// expect notes that the Pod's readiness is about to be written.
func (o *observer) expect(pod string, ready bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if seen, known := o.seen[pod]; known && seen == ready {
		// The slices say so already, or still: nothing will show that it has
		// been dealt with, or an earlier change that has not shown.
		delete(o.waiting, pod)
		return
	}
	o.waiting[pod] = change{at: time.Now(), ready: ready}
}

// settle waits until every expected change has shown.
func (o *observer) settle(ctx context.Context, limit time.Duration) error {
	err := o.wait(ctx, limit, func() bool { return len(o.waiting) == 0 })
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		return fmt.Errorf("%d changes have not shown in the slices: %w", len(o.waiting), err)
	}
	return nil
}

// empty waits until no slice has an endpoint.
func (o *observer) empty(ctx context.Context, limit time.Duration) error {
	err := o.wait(ctx, limit, func() bool {
		for _, endpoints := range o.slices {
			if endpoints > 0 {
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("slices have endpoints that are gone: %w", err)
	}
	return nil
}

// wait waits until met, which is called with the lock held.
func (o *observer) wait(ctx context.Context, limit time.Duration, met func() bool) error {
	o.mu.Lock()
	if met() {
		o.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	o.idle, o.met = idle, met
	o.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-o.done:
		return errors.New("the watch of slices ended")
	case <-time.After(limit):
		return fmt.Errorf("not within %s", limit)
	}
}
