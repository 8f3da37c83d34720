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
	latency []float64
	writes  int
	idle    chan struct{} // closed when nothing waits any more
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
	o := &observer{watch: stream, done: make(chan struct{}), waiting: map[string]change{}, seen: map[string]bool{}}
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
	if kind == watch.Deleted {
		return
	}
	for i := range slice.Endpoints {
		endpoint := &slice.Endpoints[i]
		name, ready := endpoint.TargetRef.Name, *endpoint.Conditions.Ready
		o.seen[name] = ready
		if wanted, ok := o.waiting[name]; ok && wanted.ready == ready {
			o.latency = append(o.latency, now.Sub(wanted.at).Seconds())
			delete(o.waiting, name)
		}
	}
	if len(o.waiting) == 0 && o.idle != nil {
		close(o.idle)
		o.idle = nil
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
	o.mu.Lock()
	if len(o.waiting) == 0 {
		o.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	o.idle = idle
	o.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-o.done:
		return errors.New("the watch of slices ended")
	case <-time.After(limit):
		o.mu.Lock()
		defer o.mu.Unlock()
		return fmt.Errorf("%d changes have not shown in the slices after %s", len(o.waiting), limit)
	}
}
