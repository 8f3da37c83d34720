// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// gather is the least time between two runs. Each walks the kernel's table, which
// takes some 10 ms whatever is in it, and endpoints can come and go by the
// hundred. A client sends its SYN again after a second.
const gather = 250 * time.Millisecond

// Cleaner ends stale flows in the background: programming new rules never
// waits for it, and changes that come meanwhile are cleaned up together.
type Cleaner struct {
	tcp   bool
	clean func([]Scope) (int, error)
	done  func(deleted int, elapsed time.Duration, err error)

	mu     sync.Mutex
	scopes map[scopeID]Scope
	wake   chan struct{}
}

// scopeID is what there is one Scope of at a time.
type scopeID struct {
	key        model.Key
	unanswered bool
}

// NewCleaner gives a Cleaner of the kernel's table. tcp cuts TCP connections
// to endpoints that went, and resets their clients. done, unless nil, is told of every run.
func NewCleaner(tcp bool, done func(deleted int, elapsed time.Duration, err error)) *Cleaner {
	return &Cleaner{tcp: tcp, clean: Table{Reset: tcp}.Clean, done: done, scopes: map[scopeID]Scope{}, wake: make(chan struct{}, 1)}
}

// Changed takes in changes that the kernel's rules already reflect.
func (c *Cleaner) Changed(changes []model.Change) {
	c.mu.Lock()
	for _, ch := range changes {
		c.spare(ch.New)
		for _, s := range Plan(ch, c.tcp) {
			id := scopeID{s.Key, s.Unanswered}
			if old, ok := c.scopes[id]; ok {
				s.Gone, s.AllGone = union(without(old.Gone, s.Keep), s.Gone), s.AllGone || old.AllGone
			}
			c.scopes[id] = s
		}
	}
	waiting := len(c.scopes) > 0
	c.mu.Unlock()
	if waiting {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// spare leaves the flows alone that a Service may have again; mu is held.
func (c *Cleaner) spare(svc *model.Service) {
	if len(c.scopes) == 0 || svc == nil {
		return
	}
	for i := range svc.Frontends {
		for _, unanswered := range []bool{false, true} {
			id := scopeID{svc.Frontends[i].Key, unanswered}
			if s, ok := c.scopes[id]; ok {
				s.Keep = keep(&svc.Frontends[i], unanswered)
				s.Gone = without(s.Gone, s.Keep)
				c.scopes[id] = s
			}
		}
	}
}

// Run cleans until ctx ends.
func (c *Cleaner) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("conntrack")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		}
		c.mu.Lock()
		scopes := make([]Scope, 0, len(c.scopes))
		for _, s := range c.scopes {
			scopes = append(scopes, s)
		}
		clear(c.scopes)
		c.mu.Unlock()
		start := time.Now()
		n, err := c.clean(scopes)
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
