// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/announcetest"
	"github.com/causeway-lb/causeway/internal/announce/wire"
)

// watcher asks on one segment all the time, and notes for how long two have
// answered one question, or nobody has.
type watcher struct {
	asker *announcetest.Asker
	addrs []netip.Addr
	stop  chan struct{}
	done  sync.WaitGroup

	mu    sync.Mutex
	since map[netip.Addr]state
	twice time.Duration // the longest
	none  time.Duration
	asked int
}

// state is what an address has been like since a time.
type state struct {
	answers int // 0, 1, 2 for more
	since   time.Time
}

func watchSegment(asker *announcetest.Asker, addrs []netip.Addr) *watcher {
	w := &watcher{asker: asker, addrs: addrs, stop: make(chan struct{}), since: map[netip.Addr]state{}}
	w.done.Go(w.run)
	return w
}

// run asks for one address after the other. What is heard until the next round
// are the answers.
func (w *watcher) run() {
	asked := map[netip.Addr]time.Time{}
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(answerWait):
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

func (w *watcher) note(a netip.Addr, answers int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	now, answers := time.Now(), min(answers, 2)
	s, ok := w.since[a]
	if !ok || s.answers != answers {
		s = state{answers, now}
		w.since[a] = s
	}
	switch lasted := now.Sub(s.since); answers {
	case 0:
		w.none = max(w.none, lasted)
	case 2:
		w.twice = max(w.twice, lasted)
	}
}

// take gives the longest times since the last take.
func (w *watcher) take() (twice, none time.Duration, asked int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	twice, none, asked = w.twice, w.none, w.asked
	w.twice, w.none, w.asked = 0, 0, 0
	clear(w.since)
	return twice, none, asked
}

func (w *watcher) close() {
	close(w.stop)
	w.done.Wait()
}

// rounds is how often TestPartitions does each thing: 2, or ANNOUNCE_ROUNDS.
func rounds(t *testing.T) int {
	s := os.Getenv("ANNOUNCE_ROUNDS")
	if s == "" {
		return 2
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("ANNOUNCE_ROUNDS: %v", err)
	}
	return n
}

// TestPartitions parts five nodes into two and three and joins them again, and
// blocks gossip while the LAN works. On either side no question is answered twice,
// and none goes unanswered, for longer than a second.
func TestPartitions(t *testing.T) {
	limit := time.Second
	if busyMachine() {
		limit = 3 * time.Second
	}
	for _, tc := range []struct {
		name       string
		management bool
		apart      func(h *announcetest.Host) error
		together   func(h *announcetest.Host) error
		nodes      int // how many are moved
		far        bool
	}{
		{"two and three", false, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
		{"LAN alone, two and three", true, (*announcetest.Host).Away, (*announcetest.Host).Mend, 2, true},
		{"gossip blocked", true, (*announcetest.Host).CutGossip, (*announcetest.Host).MendGossip, 5, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var addrs []netip.Addr
			for i := range 6 {
				addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(200 + i)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::20%d", i)))
			}
			l := startLAN(t, announcetest.Options{Nodes: 5, Addresses: addrs, Management: tc.management, Partition: true})
			far, err := announcetest.NewAsker(l.Far)
			l.must(err)
			t.Cleanup(far.Close)
			near := watchSegment(l.asker, addrs)
			defer near.close()
			check := func(what string, w *watcher) {
				t.Helper()
				twice, none, asked := w.take()
				t.Logf("%s: answered twice for %v, not at all for %v (%d questions)", what, twice, none, asked)
				if twice > limit || none > limit {
					t.Errorf("%s: answered twice for %v, not at all for %v, want at most %v", what, twice, none, limit)
				}
				if asked == 0 {
					t.Errorf("%s: nothing was asked", what)
				}
			}
			for round := range rounds(t) {
				near.take()
				for i := range tc.nodes {
					l.must(tc.apart(l.Nodes[(round+i)%len(l.Nodes)]))
				}
				if tc.far {
					w := watchSegment(far, addrs)
					time.Sleep(2500 * time.Millisecond)
					w.close()
					check("apart, far side", w)
				} else {
					time.Sleep(2500 * time.Millisecond)
				}
				check("apart, near side", near)
				for i := range tc.nodes {
					l.must(tc.together(l.Nodes[(round+i)%len(l.Nodes)]))
				}
				time.Sleep(2500 * time.Millisecond)
				check("together", near)
			}
		})
	}
}
