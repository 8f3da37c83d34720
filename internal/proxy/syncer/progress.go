// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Status is how the kernel stands.
type Status struct {
	// Started reports whether a sync has succeeded since the start.
	Started bool
	// InSync reports whether the kernel matches all that was notified, except for
	// Rejected.
	InSync bool
	// Rejected are the Services that the kernel rejects; it has the others. Not
	// to be modified.
	Rejected []types.NamespacedName
	// Since is when InSync last became what it is.
	Since time.Time
	// Behind is since when the oldest of what was notified is not in the kernel,
	// because the Backend works on it, cannot do it, or does not return; zero if
	// there is nothing, and before Run.
	Behind time.Time
	// Attempts is how often a sync has ended.
	Attempts uint64
	// LastSync is when a sync last succeeded.
	LastSync time.Time
	// Err is why the last sync failed, nil if it did not.
	Err error
}

// LateAfter is how long something that was notified may take to be in the kernel.
const LateAfter = 10 * time.Second

// Late reports whether the kernel is behind for too long to call it in sync, though
// no sync has failed, and else how soon it may be so by itself; 0 for never.
func (s Status) Late(now time.Time) (late bool, again time.Duration) {
	if s.Behind.IsZero() {
		return false, 0
	}
	left := LateAfter - now.Sub(s.Behind)
	return left <= 0, max(left, 0)
}

// progress keeps the Status. Safe for concurrent use.
type progress struct {
	mu      sync.Mutex
	status  Status
	running bool
	queued  time.Time // since when something is in the inbox
	busy    time.Time // since when what was taken from there is not in the kernel
	watches []chan struct{}
}

func (p *progress) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running, p.queued = true, time.Now()
}

// queue records that something is in the inbox that was noticed at a time.
func (p *progress) queue(noticed time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.queued.IsZero() && !noticed.Before(p.queued) {
		return
	}
	first := p.queued.IsZero()
	p.queued = noticed
	if first && p.busy.IsZero() {
		p.wakeWatches()
	}
}

// take records that the inbox was emptied.
func (p *progress) take() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy.IsZero() {
		p.busy = p.queued
	}
	p.queued = time.Time{}
}

// work records that a sync has begun, perhaps again without anything new.
func (p *progress) work(start time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy.IsZero() {
		p.busy = start
	}
}

// idle records that all that was taken is in the kernel, and reported.
func (p *progress) idle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Time{}
}

// done records the outcome of a sync.
func (p *progress) done(rejected []types.NamespacedName, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	s := &p.status
	if inSync := err == nil; s.InSync != inSync || s.Since.IsZero() {
		s.InSync, s.Since = inSync, now
	}
	s.Attempts++
	s.Err = err
	if err == nil {
		s.Started, s.LastSync, s.Rejected = true, now, rejected
	}
	p.wakeWatches()
}

func (p *progress) get() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.status
	switch {
	case !p.running:
	case p.busy.IsZero() || !p.queued.IsZero() && p.queued.Before(p.busy):
		out.Behind = p.queued
	default:
		out.Behind = p.busy
	}
	return out
}

func (p *progress) watch() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	ch := make(chan struct{}, 1)
	p.watches = append(p.watches, ch)
	return ch
}

// wakeWatches is called with mu held.
func (p *progress) wakeWatches() {
	for _, ch := range p.watches {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}
