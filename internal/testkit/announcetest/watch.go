// SPDX-License-Identifier: Apache-2.0

package announcetest

import (
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// Watch asks on one segment all the time, for one address after the other, and
// records how long two have answered one question, or no node has.
type Watch struct {
	asker *Asker
	addrs []netip.Addr
	every time.Duration
	stop  chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex
	since map[netip.Addr]answered
	worst Worst
}

// Worst are the longest times in which an address was answered twice, or not at
// all, and how many questions have shown that.
type Worst struct {
	Twice, None time.Duration
	Asked       int
}

// answered is how often an address has been answered since a time.
type answered struct {
	times int // 0, 1, 2 for more
	since time.Time
}

// NewWatch asks for every address once in an interval, which is also how long
// answers may take. Close it.
func NewWatch(asker *Asker, addrs []netip.Addr, every time.Duration) *Watch {
	w := &Watch{asker: asker, addrs: addrs, every: every, stop: make(chan struct{}), since: map[netip.Addr]answered{}}
	w.done.Go(w.run)
	return w
}

// run asks. What is heard until the next round are the answers.
func (w *Watch) run() {
	asked := map[netip.Addr]time.Time{}
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
		for _, a := range w.addrs {
			if at, ok := asked[a]; ok {
				macs := map[wire.MAC]bool{}
				for _, r := range w.asker.Answers(a, at) {
					macs[r.MAC] = true
				}
				w.note(a, len(macs))
			}
			at, err := w.asker.Question(a)
			if err != nil {
				return
			}
			asked[a] = at
		}
	}
}

func (w *Watch) note(a netip.Addr, times int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.worst.Asked++
	now, times := time.Now(), min(times, 2)
	s, ok := w.since[a]
	if !ok || s.times != times {
		s = answered{times, now}
		w.since[a] = s
	}
	switch lasted := now.Sub(s.since); times {
	case 0:
		w.worst.None = max(w.worst.None, lasted)
	case 2:
		w.worst.Twice = max(w.worst.Twice, lasted)
	}
}

// Take returns the worst since the last Take.
func (w *Watch) Take() Worst {
	w.mu.Lock()
	defer w.mu.Unlock()
	worst := w.worst
	w.worst = Worst{}
	clear(w.since)
	return worst
}

// Close ends the Watch.
func (w *Watch) Close() {
	close(w.stop)
	w.done.Wait()
}
