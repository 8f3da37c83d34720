// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// How often a node asks whether another has what it announces, for one address after
// the other: while a peer is out of contact, or was until holdDown ago, and more
// slowly once contact has been lost for longLost. A node that hears one that it holds
// dead announces everything (see hear), so one is enough.
const (
	lostRefresh     = 250 * time.Millisecond
	longLostRefresh = 5 * time.Second
	longLost        = 5 * time.Minute
	holdDown        = 3 * time.Second
)

// contacts is with which nodes contact is lost, or has just come back. Each of them
// may announce what this node announces.
type contacts struct {
	lost     map[string]time.Time // since when a node that is not alive is lost
	holdDown time.Time            // until then questions are asked often; zero for not
}

// track compares the nodes of two elections. reannounce reports that a node has come
// back, which then hears what this node announces.
func (t *contacts) track(now time.Time, old, nodes []elect.Node) (reannounce bool) {
	was := make(map[string]bool, len(old))
	for _, n := range old {
		was[n.Name] = n.Alive
	}
	for _, n := range nodes {
		alive, known := was[n.Name]
		switch {
		case !n.Alive && (alive || !known):
			t.lost[n.Name] = now
		case n.Alive && known && !alive:
			reannounce = true
			delete(t.lost, n.Name)
			t.holdDown = now.Add(holdDown)
		}
	}
	return reannounce
}

// holdDownOver reports, once, that the usual intervals hold again.
func (t *contacts) holdDownOver(now time.Time) bool {
	if t.holdDown.IsZero() || now.Before(t.holdDown) {
		return false
	}
	t.holdDown = time.Time{}
	return true
}

// interval returns how often one of all addresses is asked about, or announced; 0 for
// as usual.
func (t *contacts) interval(now time.Time, nodes []elect.Node) time.Duration {
	every := time.Duration(0)
	if now.Before(t.holdDown) {
		every = lostRefresh
	}
	for _, n := range nodes {
		switch {
		case n.Alive:
		case now.Sub(t.lost[n.Name]) < longLost:
			return lostRefresh
		case every == 0:
			every = longLostRefresh
		}
	}
	return every
}
