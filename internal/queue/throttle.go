// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// WriteThrottle spaces the writes for one object, so that a burst of changes (a
// large Deployment rolls) costs as few writes as it should, while a single
// change is written immediately. The pause follows from what was just written,
// since every node has to read that: a pass that changed one slice of a large
// Service holds the next one up for a moment, a pass that changed all of them
// for longer. (A rate limiter knows rates, not the sizes of what was written.)
type WriteThrottle struct {
	// Unit is the pause per slice or address written, Limit the longest.
	Unit, Limit time.Duration

	mu   sync.Mutex
	next map[types.NamespacedName]time.Time
}

// Wait returns how long the object has to wait, 0 if it may be written.
func (t *WriteThrottle) Wait(name types.NamespacedName, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := t.next[name].Sub(now)
	if left <= 0 {
		delete(t.next, name)
	}
	return max(0, left)
}

// Wrote notes that something of the given size was written.
func (t *WriteThrottle) Wrote(name types.NamespacedName, size int, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next == nil {
		t.next = map[types.NamespacedName]time.Time{}
	}
	t.next[name] = now.Add(min(t.Limit, time.Duration(size)*t.Unit))
}

// Forget drops what is known of an object that is gone.
func (t *WriteThrottle) Forget(name types.NamespacedName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.next, name)
}
