// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/source"
)

// gate lets one controller begin only when watches of another have delivered
// what there was at first. It opens when each source that was given to after has
// done so. The zero value is ready to use; all calls of after come before the
// controllers start.
type gate struct {
	mu   sync.Mutex
	left int
	open chan struct{}
}

// opened is closed when the gate opens.
func (g *gate) opened() chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
	}
	return g.open
}

// after returns the source, for which the gate waits.
func (g *gate) after(s source.SyncingSource) source.SyncingSource {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left++
	return &gateOpener{SyncingSource: s, gate: g}
}

// wait returns a source without events whose controller begins after the gate
// has opened.
func (g *gate) wait() source.SyncingSource { return gateWaiter{gate: g} }

type gateOpener struct {
	source.SyncingSource
	gate *gate
	once sync.Once
}

// WaitForSync implements source.SyncingSource.
func (o *gateOpener) WaitForSync(ctx context.Context) error {
	err := o.SyncingSource.WaitForSync(ctx)
	if err == nil && ctx.Err() == nil {
		o.once.Do(o.passed)
	}
	return err
}

func (o *gateOpener) passed() {
	opened := o.gate.opened()
	o.gate.mu.Lock()
	defer o.gate.mu.Unlock()
	if o.gate.left--; o.gate.left == 0 {
		close(opened)
	}
}

// String names the source in logs.
func (o *gateOpener) String() string { return fmt.Sprint(o.SyncingSource) }

type gateWaiter struct{ gate *gate }

// Start implements source.Source.
func (gateWaiter) Start(context.Context, queue) error { return nil }

// WaitForSync implements source.SyncingSource.
func (w gateWaiter) WaitForSync(ctx context.Context) error {
	select {
	case <-w.gate.opened():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another controller's watches: %w", ctx.Err())
	}
}

// String names the source in logs.
func (gateWaiter) String() string { return "another controller's watches" }
