// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const (
	// gather is the least time between two runs. Each walks the kernel's table, which
	// takes some 10 ms whatever is in it, and endpoints can come and go by the
	// hundred. A client sends its SYN again after a second.
	gather = 250 * time.Millisecond
	// linger is how long the flows of a frontend stay after it has gone altogether:
	// a Service that is replaced, or made again under another name, has it back by
	// then, and so its clients their endpoints.
	linger = time.Second
)

// Cleaner ends stale flows in the background: programming new rules never
// waits for it, and changes that come meanwhile are cleaned up together.
type Cleaner struct {
	tcp   bool
	clean func(*model.Node, []Scope) (int, error)
	done  func(deleted int, elapsed time.Duration, err error)

	mu      sync.Mutex
	node    model.Node
	changed map[model.Key]*pending
	wake    chan struct{}
}

// pending is what has happened to a frontend since the last run.
type pending struct {
	history
	// gone is when it went, if it is gone.
	gone time.Time
}

// NewCleaner gives a Cleaner of the kernel's table. tcp cuts TCP connections
// to endpoints that went, or of clients that are not admitted any more, and
// resets their clients. done, unless nil, is told of every run.
func NewCleaner(tcp bool, done func(deleted int, elapsed time.Duration, err error)) *Cleaner {
	return &Cleaner{
		tcp: tcp, done: done, changed: map[model.Key]*pending{}, wake: make(chan struct{}, 1),
		clean: func(node *model.Node, scopes []Scope) (int, error) {
			return Table{Reset: tcp, Node: *node}.Clean(scopes)
		},
	}
}

// SetNode says what tells the clients of this node from others.
func (c *Cleaner) SetNode(n model.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.node = n
}

// Changed takes in changes that the kernel's rules already reflect, all of which
// were made at once.
func (c *Cleaner) Changed(changes []model.Change) {
	now := time.Now()
	c.mu.Lock()
	for key, h := range histories(changes) {
		p := c.changed[key]
		switch {
		case p != nil:
			p.then(h)
		case len(h.scopes(c.tcp)) == 0:
			continue // most changes leave nothing stale
		default:
			p = &pending{history: *h}
			c.changed[key] = p
		}
		if p.is == nil && h.is == nil && len(h.was) > 0 {
			p.gone = now
		}
	}
	waiting := len(c.changed) > 0
	c.mu.Unlock()
	if waiting {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// due takes the scopes that are to be cleaned now, and says when the next ones
// are; 0 for none.
func (c *Cleaner) due(now time.Time) (node model.Node, scopes []Scope, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, p := range c.changed {
		if left := p.gone.Add(linger).Sub(now); p.is == nil && left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		scopes = append(scopes, p.scopes(c.tcp)...)
		delete(c.changed, key)
	}
	slices.SortStableFunc(scopes, func(a, b Scope) int { return a.Key.Compare(b.Key) })
	return c.node, scopes, next
}

// Run cleans until ctx ends.
func (c *Cleaner) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("conntrack")
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-later.C:
		}
		start := time.Now()
		node, scopes, next := c.due(start)
		if next > 0 {
			later.Reset(next)
		}
		if len(scopes) == 0 {
			continue
		}
		n, err := c.clean(&node, scopes)
		if err != nil {
			log.Error(err, "Not all stale flows were ended as they should be, the others remain until they time out")
		}
		if n > 0 {
			log.V(1).Info("Ended stale flows", "flows", n, "elapsed", time.Since(start))
		}
		if c.done != nil {
			c.done(n, time.Since(start), err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(gather - time.Since(start)):
		}
	}
}
