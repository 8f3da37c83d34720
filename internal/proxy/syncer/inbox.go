// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// news is what has come in.
type news struct {
	services map[types.NamespacedName]cause
	node     *model.Node // nil: as it was
	check    Check
}

// cause is why a Service changed.
type cause struct {
	// trigger is when it happened, zero if that is not known; noticed is when
	// Notify told of it.
	trigger, noticed time.Time
}

// earlier joins two causes of one change.
func (c cause) earlier(o cause) cause {
	if c.trigger.IsZero() || !o.trigger.IsZero() && o.trigger.Before(c.trigger) {
		c.trigger = o.trigger
	}
	if o.noticed.Before(c.noticed) {
		c.noticed = o.noticed
	}
	return c
}

// inbox collects news until the next sync. Safe for concurrent use.
type inbox struct {
	progress *progress
	// arrived receives when there is news.
	arrived chan struct{}

	mu   sync.Mutex
	news news
}

func newInbox(p *progress) *inbox {
	return &inbox{progress: p, arrived: make(chan struct{}, 1), news: news{services: map[types.NamespacedName]cause{}}}
}

func (b *inbox) kick() {
	select {
	case b.arrived <- struct{}{}:
	default:
	}
}

// put adds news by change, which noticed says when it was noticed.
func (b *inbox) put(noticed time.Time, change func(*news)) {
	b.mu.Lock()
	change(&b.news)
	b.progress.queue(noticed)
	b.mu.Unlock()
	b.kick()
}

// service adds that a Service changed.
func (n *news) service(name types.NamespacedName, c cause) {
	if old, ok := n.services[name]; ok {
		c = c.earlier(old)
	}
	n.services[name] = c
}

// take empties the inbox.
func (b *inbox) take() news {
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := b.news
	b.news = news{services: map[types.NamespacedName]cause{}}
	b.progress.take()
	return taken
}
