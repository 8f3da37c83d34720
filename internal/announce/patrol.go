// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/wire"
)

// A node that is alive by gossip need not be there on the link: its cable to the
// LAN may be cut while another network carries the gossip. So a node that would
// succeed an announcer asks the link now and then for one of its addresses.
const (
	patrolInterval = 150 * time.Millisecond
	patrolMisses   = 3
)

// beat is what a port knows of one announcer.
type beat struct {
	address  netip.Addr // one that it should answer for
	mac      wire.MAC   // of the last answer; zero asks everyone
	misses   int
	answered bool
}

// plan chooses whom to ask on p, from the addresses for which this node is not
// the announcer but could be.
func (l *loop) plan(p *port, addresses []elect.Address, wanted []map[*port]bool, results []elect.Result) {
	old := p.beats
	p.beats = map[string]*beat{}
	if l.s.cfg.Members.ProbeInterval == 0 {
		return // gossip alone is to decide
	}
	for i, r := range results {
		name := r.Announcer
		if !wanted[i][p] || name == "" || name == l.s.cfg.Node || r.Rank(l.s.cfg.Node) < 0 {
			continue
		}
		b := p.beats[name]
		switch {
		case b != nil:
			if o := old[name]; o != nil && o.address == addresses[i].Addr {
				*b = *o // asked before: go on with it
			}
		case len(p.beats) < maxWatched:
			b = &beat{address: addresses[i].Addr, answered: true}
			if len(p.missing) > 0 {
				// It may be as far away as those are, and clients wait.
				b.misses, b.answered = 1, false
			}
			p.beats[name] = b
			if o := old[name]; o != nil && o.address == addresses[i].Addr {
				*p.beats[name] = *o
			}
		}
	}
	for name := range p.missing {
		if !l.view[name].Alive {
			delete(p.missing, name) // membership says so itself now
		}
	}
}

// patrol asks every announcer again, and holds those missing that have not
// answered for patrolMisses times.
func (l *loop) patrol(now time.Time) {
	if now.Before(l.patrolAt) {
		return
	}
	// Where this process is late itself, nobody is to blame for an answer.
	starved := now.Sub(l.patrolAt) > patrolInterval/2
	l.patrolAt = now.Add(patrolInterval)
	l.drain() // answers that wait already
	for _, p := range l.ports {
		for name, b := range p.beats {
			l.judge(p, name, b, starved)
			to := b.mac
			if b.misses > 0 {
				to = wire.MAC{}
			}
			// An error says nothing about the announcer.
			b.answered = p.conn.Probe(b.address, to) != nil
		}
	}
}

// judge counts what became of the last question to an announcer.
func (l *loop) judge(p *port, name string, b *beat, starved bool) {
	switch {
	case b.answered:
		b.misses = 0
	case starved:
	case l.s.members.Stalled(name):
		// Membership is about to tell what is wrong with it; it may just wait for
		// its turn on busy cores.
	default:
		b.misses++
		if b.misses == patrolMisses && l.view[name].Alive {
			l.log.Info("An announcer is alive but does not answer on this link", "node", name, "interface", p.name, "address", b.address)
			l.miss(p, name, true)
		}
	}
}

// seen takes a claim of a node, or of a stranger (name ""), on p.
func (l *loop) seen(p *port, name string, m wire.Message) {
	if p.missing[name] {
		l.log.Info("An announcer answers on this link again", "node", name, "interface", p.name)
		l.miss(p, name, false)
	}
	for _, b := range p.beats {
		if b.address == m.Address {
			b.answered, b.mac = true, m.From
		}
	}
}

// miss notes for both families on p's interface that a node is missing there or
// is back.
func (l *loop) miss(p *port, name string, missing bool) {
	l.dirty = true
	for _, o := range l.ports {
		switch {
		case o.key.index != p.key.index:
		case missing:
			o.missing[name] = true
		default:
			delete(o.missing, name)
		}
	}
}

// elections gives for each port the results as they are on its link: without
// the nodes that are missing there.
func (l *loop) elections(addresses []elect.Address, results []elect.Result) map[*port][]elect.Result {
	out := make(map[*port][]elect.Result, len(l.ports))
	cache := map[string][]elect.Result{"": results}
	for _, p := range l.ports {
		key := strings.Join(slices.Sorted(maps.Keys(p.missing)), "/")
		if cache[key] == nil {
			nodes := slices.Clone(l.nodes)
			for i := range nodes {
				nodes[i].Alive = nodes[i].Alive && !p.missing[nodes[i].Name]
			}
			cache[key] = elect.Elect(nodes, addresses)
		}
		out[p] = cache[key]
	}
	return out
}
