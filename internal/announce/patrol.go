// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// A node that is alive by gossip need not be there on the link: its cable to the
// LAN may be cut while another network carries the gossip. So a node that would
// succeed an announcer asks the link every patrolInterval for one of its addresses,
// and where there is no answer within patrolTick, again every patrolTick.
const (
	patrolInterval = 150 * time.Millisecond
	patrolTick     = 50 * time.Millisecond
	patrolMisses   = 3
	// Who was just elected has to look at the link first. Where others are missing
	// clients wait, and it does so in a hurry.
	patrolGrace      = time.Second
	patrolHurryGrace = 200 * time.Millisecond
	// Who is missing is asked every missingInterval, and longMissingInterval once it
	// has been so for longLost. That it is back is not left to announcements: it may
	// be this node that does not hear, and clients would come here in vain.
	missingInterval     = 200 * time.Millisecond
	longMissingInterval = 5 * time.Second
	// Who is missing for one address stays so for patrolHold, though it may be
	// heard about another: where agents miss different nodes they elect differently,
	// and each may wait for the other.
	patrolHold = 2 * time.Second
)

// absence is what a port knows of a node that is alive but does not answer.
type absence struct {
	since   time.Time
	address netip.Addr // for which it did not
	asked   time.Time  // the last time, since then
}

// beat is what a port knows of one announcer.
type beat struct {
	// addresses that it should answer for. The first is asked for, until it turns
	// out that another has it: the node elected need not have taken it yet.
	addresses []netip.Addr
	mac       wire.MAC // of the last answer; zero before that, and asks everyone
	since     time.Time
	asked     time.Time
	waiting   bool // for an answer
	misses    int  // questions without an answer, since the last one
}

// is tells whether a is being asked for.
func (b *beat) is(a netip.Addr) bool { return len(b.addresses) > 0 && b.addresses[0] == a }

// next goes on to another address.
func (b *beat) next() { *b = beat{addresses: b.addresses[1:], since: b.since, asked: b.asked} }

// plan chooses whom to ask on p, from the addresses for which this node is not
// the announcer but could be.
func (l *loop) plan(now time.Time, p *port, addresses []elect.Address, wanted []map[*port]bool, results []elect.Result) {
	old := p.beats
	p.beats = map[string]*beat{}
	if l.s.cfg.Members.ProbeInterval == 0 {
		return // gossip alone is to decide
	}
	listed := make(map[netip.Addr]bool, len(addresses))
	for i := range addresses {
		listed[addresses[i].Addr] = true
	}
	for i, r := range results {
		name := r.Announcer
		if !wanted[i][p] || name == "" || name == l.s.cfg.Node || r.Rank(l.s.cfg.Node) < 0 {
			continue
		}
		b := p.beats[name]
		switch o := old[name]; {
		case b != nil:
		case len(p.beats) == maxWatched:
			continue
		case o != nil && len(o.addresses) > 0 && listed[o.addresses[0]]:
			// It was asked for this one. If that has just moved it will be answered
			// by another, and until then what is known is not forgotten.
			b = o
			b.addresses = b.addresses[:1:1]
			p.beats[name] = b
		default:
			b = &beat{since: now}
			p.beats[name] = b
		}
		switch a := addresses[i].Addr; {
		case b.is(a):
		case p.open[a] && (len(b.addresses) == 0 || !p.open[b.addresses[0]]):
			// Nobody answered for it, so it is what has to be asked for now.
			*b = beat{addresses: append([]netip.Addr{a}, b.addresses...), since: now}
		default:
			b.addresses = append(b.addresses, a)
		}
	}
	maps.DeleteFunc(p.open, func(a netip.Addr, _ bool) bool { return !listed[a] })
	for name := range p.missing {
		if !l.view[name].Alive {
			delete(p.missing, name) // membership says so itself now
		}
	}
}

// patrol asks every announcer again whose turn it is, and holds those missing that
// have not answered for patrolMisses times.
func (l *loop) patrol(now time.Time) {
	if now.Before(l.patrolAt) {
		return
	}
	l.patrolAt = now.Add(patrolTick)
	late := make(map[*port]bool, len(l.ports))
	for _, p := range l.ports {
		late[p] = p.conn.Unread() // asked first: what is read meanwhile is drained
	}
	l.drain()
	// Where agents are late the answer may be, too.
	misses := patrolMisses + int(min(l.s.members.Slack(), maxSlack)/patrolTick)
	for _, p := range l.ports {
		for name, b := range p.beats {
			for len(b.addresses) > 0 && p.answers(b.addresses[0]) {
				b.next()
			}
			if len(b.addresses) == 0 {
				continue // it announces nothing yet
			}
			if b.waiting && !late[p] {
				l.judge(p, name, b, misses)
			}
			if b.misses == 0 && now.Sub(b.asked) < patrolInterval {
				continue
			}
			b.asked, b.waiting = now, l.askAnnouncer(p, name, b)
		}
		l.askMissing(now, p)
	}
}

// askMissing asks those who are missing on p for what they should announce. One from
// whom nothing is expected any more is not missing.
func (l *loop) askMissing(now time.Time, p *port) {
	for name, gone := range p.missing {
		interval := missingInterval
		if now.Sub(gone.since) > longLost {
			interval = longMissingInterval
		}
		if now.Sub(gone.asked) < interval {
			continue
		}
		a, expected := l.expected(p, name, gone.address)
		switch {
		case !expected:
			l.miss(p, name, absence{})
		case a.IsValid():
			gone.asked = now
			p.missing[name] = gone
			l.askAnnouncer(p, name, &beat{addresses: []netip.Addr{a}})
		}
	}
}

// expected gives an address of p's family that a node should announce, first if that
// is one, and tells whether it should announce any.
func (l *loop) expected(p *port, name string, first netip.Addr) (a netip.Addr, any bool) {
	for addr, r := range l.results {
		if r.Announcer != name {
			continue
		}
		any = true
		if addr.Is6() == p.key.six && (!a.IsValid() || addr == first || a != first && addr.Less(a)) {
			a = addr
		}
	}
	return a, any
}

// askAnnouncer asks the one that should announce the first of b's addresses. Before
// it has answered, and when it has not, everyone is asked in every way that there
// is: what does not get through says nothing about it. Nor does an error, for which
// askAnnouncer gives false.
func (l *loop) askAnnouncer(p *port, name string, b *beat) bool {
	a := b.addresses[0]
	if !b.mac.IsZero() && b.misses == 0 {
		return p.conn.Probe(a, b.mac) == nil
	}
	asked := p.conn.Probe(a, wire.MAC{}) == nil
	for _, mac := range l.hardware(name, a) {
		asked = p.conn.Probe(a, mac) == nil && asked
	}
	p.question(a)
	return asked
}

// hardware gives the hardware addresses with which a node announces an address.
func (l *loop) hardware(name string, a netip.Addr) []wire.MAC {
	i := slices.IndexFunc(l.snap.Addresses, func(x Address) bool { return x.Addr == a })
	if i < 0 {
		return nil
	}
	var out []wire.MAC
	for _, k := range l.announcing(name, &elect.Address{Addr: a, Pool: &l.snap.Addresses[i].Pool.Pool}) {
		out = append(out, k.MAC)
	}
	return out
}

// announcing gives the interfaces on which a node announces an address, or would.
func (l *loop) announcing(name string, a *elect.Address) []fact {
	links := l.told[name].Links
	ifaces := make([]elect.Interface, 0, len(links))
	for _, k := range links {
		ifaces = append(ifaces, k.Interface)
	}
	var out []fact
	for _, k := range elect.On(a, ifaces) {
		out = append(out, links[k])
	}
	return out
}

// judge counts a question to an announcer that was not answered.
func (l *loop) judge(p *port, name string, b *beat, misses int) {
	grace := patrolGrace
	if len(p.missing) > 0 {
		grace = patrolHurryGrace + min(l.s.members.Slack(), maxSlack)
	}
	switch {
	case l.s.members.Stalled(name):
		// Membership is about to tell what is wrong with it; it may just wait for
		// its turn on busy cores.
		return
	case b.mac.IsZero() && b.asked.Sub(b.since) < grace:
		return
	}
	b.misses++
	if _, ok := p.missing[name]; b.misses >= misses && !ok && l.view[name].Alive {
		l.log.Info("An announcer is alive but does not answer on this link", "node", name, "interface", p.name, "address", b.addresses[0])
		p.open[b.addresses[0]] = true
		l.miss(p, name, absence{since: b.asked, address: b.addresses[0], asked: b.asked})
	}
}

// seen takes a claim of a node, or of a stranger, on p. That a node is there it
// has to prove.
func (l *loop) seen(now time.Time, p *port, from claim.Peer, m wire.Message) {
	name := from.Name
	delete(p.open, m.Address)
	if gone, ok := p.missing[name]; ok && !from.Hint && (gone.address == m.Address || now.Sub(gone.since) >= patrolHold) {
		l.log.Info("An announcer answers on this link again", "node", name, "interface", p.name)
		l.miss(p, name, absence{})
	}
	for asked, b := range p.beats {
		switch {
		case name == "" || !b.is(m.Address):
		case name == asked && from.Hint:
		case name == asked:
			b.waiting, b.misses, b.mac = false, 0, m.From
		default:
			b.next() // which says nothing about the one that was asked
		}
	}
}

// looking takes a probe of a node of ours on p: it is there, and looks at the link
// before it answers, as after a restart.
func (l *loop) looking(now time.Time, p *port, name string, a netip.Addr) {
	if b := p.beats[name]; b != nil && b.is(a) {
		*b = beat{addresses: b.addresses, since: now, asked: b.asked}
	}
}

// miss notes for both families on p's interface that a node is missing there; the
// zero absence for one that is back.
func (l *loop) miss(p *port, name string, gone absence) {
	l.dirty = true
	for _, o := range l.ports {
		switch {
		case o.key.index != p.key.index:
		case gone != absence{}:
			o.missing[name] = gone
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
				if _, ok := p.missing[nodes[i].Name]; ok {
					nodes[i].Alive = false
				}
			}
			cache[key] = elect.Elect(nodes, addresses)
		}
		out[p] = cache[key]
	}
	return out
}
