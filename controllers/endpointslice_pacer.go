// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// pacer spaces the writes for one Service, so that a burst of changes (a large
// Deployment rolls) costs as few writes as it should, while a single change is
// written at once. The pause follows from what was just written, since every
// node has to read that: a pass that changed one slice of a large Service holds
// the next one up for a moment, a pass that changed all of them for longer.
type pacer struct {
	// unit is the pause per slice or address written, limit the longest.
	unit, limit time.Duration

	mu   sync.Mutex
	next map[types.NamespacedName]time.Time
}

// wait returns for how long the Service has to wait, 0 if it may go on.
func (p *pacer) wait(name types.NamespacedName, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, ok := p.next[name]
	if !ok {
		return 0
	}
	if left := next.Sub(now); left > 0 {
		return left
	}
	delete(p.next, name)
	return 0
}

// wrote notes that something of the given size was written.
func (p *pacer) wrote(name types.NamespacedName, size int, now time.Time) {
	pause := min(p.limit, time.Duration(size)*p.unit)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next == nil {
		p.next = map[types.NamespacedName]time.Time{}
	}
	p.next[name] = now.Add(pause)
}

// forget drops what is known of a Service that is gone.
func (p *pacer) forget(name types.NamespacedName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.next, name)
}
