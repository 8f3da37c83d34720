// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// A node that is alive by gossip need not be there on the link: its cable to the
// LAN may be cut while another network carries the gossip. So a node that would
// succeed an announcer asks the link every probeInterval for one of its addresses,
// and where there is no answer within probeTick, again every probeTick.
const (
	probeInterval = 150 * time.Millisecond
	probeTick     = 50 * time.Millisecond
	maxMissed     = 3
	// A node that was just elected has to look at the link first. Where others are
	// unreachable clients wait, and it does so in a hurry.
	probeGrace      = time.Second
	hurryProbeGrace = 200 * time.Millisecond
	// An unreachable node is asked every unreachableInterval, and
	// longUnreachableInterval once it has been so for longLost. That it is back is
	// not left to announcements: it may be this node that does not hear, and clients
	// would come here for nothing.
	unreachableInterval     = 200 * time.Millisecond
	longUnreachableInterval = 5 * time.Second
	// A node whose addresses all turned out to be answered for by others, this node
	// among them, is asked for one of them again every elsewhereInterval: it may have
	// taken it since, unheard.
	elsewhereInterval = 5 * time.Second
	// A node that is unreachable for one address stays so for unreachableHold, though
	// it may be heard about another: where agents miss different nodes they elect
	// differently, and each may wait for the other.
	unreachableHold = 2 * time.Second
	// A silence of silenceTime is published: within that time other nodes send frames if the
	// announcer is gone, and say that they hear no answer either. That this node hears others is true for
	// answeredTime after an answer, unless another one is missing.
	silenceTime  = 500 * time.Millisecond
	answeredTime = 2 * elsewhereInterval
)

// maxTargets is how many announcers are asked on a port.
const maxTargets = 12

// peers is what is known on one port of the announcers there.
type peers struct {
	targets     map[string]*target     // by node
	unreachable map[string]unreachable // by node; alike in both families of an interface
	unanswered  map[netip.Addr]bool    // asked for without an answer, and not heard since
	confirmed   time.Time              // when an unreachable one was last asked because it seemed to be back
	close       bool                   // this node is one of the first two successors for an address
	answered    time.Time              // when any of our agents last answered; zero also once none of targets does
	silence     silence
}

// silence is that of the whole interface of a port: since an announcer left its first
// question unanswered no frame of any host has come in.
type silence struct {
	since    time.Time // zero for none
	received uint64    // frames until then
}

func newPeers() peers {
	return peers{targets: map[string]*target{}, unreachable: map[string]unreachable{}, unanswered: map[netip.Addr]bool{}}
}

// unreachable is what a port knows of a node that is alive but does not answer.
type unreachable struct {
	since   time.Time
	address netip.Addr // for which it did not
	asked   time.Time  // the last time, since then
}

// target is what a port knows of one announcer.
type target struct {
	// addresses that it should answer for. The first is asked for, until it turns
	// out that another has it: the node elected need not have taken it yet.
	addresses []netip.Addr
	all       []netip.Addr // that it should answer for, also those that others have
	turn      int          // which of all is the next to be asked for again
	mac       wire.MAC     // of the last answer; zero before that, and asks everyone
	since     time.Time    // when it was to answer; without addresses, when the last turned out to be another's
	asked     time.Time
	waiting   bool   // for an answer
	missed    int    // questions without an answer, since the last one
	received  uint64 // frames of all hosts on the interface when the first of these was missed
}

// is reports whether a is being asked for.
func (t *target) is(a netip.Addr) bool { return len(t.addresses) > 0 && t.addresses[0] == a }

// restart asks for addresses from now on, and forgets what was found out so far.
func (t *target) restart(since time.Time, addresses ...netip.Addr) {
	*t = target{addresses: addresses, all: t.all, turn: t.turn, since: since, asked: t.asked}
}

// next goes on to another address.
func (t *target) next(now time.Time) {
	if t.restart(t.since, t.addresses[1:]...); len(t.addresses) == 0 {
		t.since = now
	}
}

// liveness probes the announcers that this node would succeed, on each port. It
// keeps what it finds in the ports' peers.
type liveness struct {
	membership Membership
	log        logr.Logger
	enabled    bool                    // else gossip alone decides
	at         time.Time               // of the next tick
	receptions map[int]elect.Reception // by the index of an interface; replaced, not changed
}

// plan chooses the targets on p, from the addresses for which this node is not the
// announcer but could be.
func (l *liveness) plan(now time.Time, c *cluster, p *port, placements []placement) {
	old := p.peers.targets
	targets := map[string]*target{}
	p.peers.targets, p.peers.close = targets, false
	if !l.enabled {
		return
	}
	unanswered := p.peers.unanswered
	for i := range placements {
		r, on := placements[i].on[p]
		name := r.Announcer
		rank := r.Rank(c.self)
		// A node that is not eligible because it hears nothing goes on asking.
		if !on || name == "" || name == c.self || rank < 0 && p.peers.silence.since.IsZero() {
			continue
		}
		p.peers.close = p.peers.close || rank == 1 || rank == 2
		t := targets[name]
		switch o := old[name]; {
		case t != nil:
		case len(targets) == maxTargets:
			continue
		case o != nil && len(o.addresses) > 0 && c.listed[o.addresses[0]] != nil:
			// It was asked for this one. If that has just moved it will be answered
			// by another, and until then what is known is not forgotten.
			t = o
			t.addresses = t.addresses[:1:1]
			targets[name] = t
		default:
			t = &target{since: now}
			targets[name] = t
		}
		switch a := placements[i].Addr; {
		case t.is(a):
		case unanswered[a] && (len(t.addresses) == 0 || !unanswered[t.addresses[0]]):
			// No node answered for it, so it is what has to be asked for now.
			*t = target{addresses: append([]netip.Addr{a}, t.addresses...), since: now}
		default:
			t.addresses = append(t.addresses, a)
		}
	}
	for _, t := range targets {
		t.all = t.addresses
	}
	maps.DeleteFunc(unanswered, func(a netip.Addr, _ bool) bool { return c.listed[a] == nil })
	for name := range p.peers.unreachable {
		if !c.member(name).Alive() {
			delete(p.peers.unreachable, name) // membership says so itself now
		}
	}
}

// active reports whether anything is asked on any port.
func (l *liveness) active(ports map[portKey]*port) bool {
	for _, p := range ports {
		if len(p.peers.targets)+len(p.peers.unreachable) > 0 {
			return true
		}
	}
	return false
}

// tick asks each announcer again that is due, and holds those unreachable that have
// not answered maxMissed times. late has the ports with frames that had not been
// read: nothing is held against any node there. changed reports that a node has
// become unreachable, or is no longer.
func (l *liveness) tick(now time.Time, c *cluster, ports map[portKey]*port, late map[*port]bool) (changed bool) {
	l.at = now.Add(probeTick)
	// Where agents are late the answer may be, too.
	most := maxMissed + int(min(l.membership.Slack(), maxSlack)/probeTick)
	for _, p := range ports {
		l.checkSilence(now, p)
		for name, t := range p.peers.targets {
			if len(t.addresses) == 0 && len(t.all) > 0 && now.Sub(t.since) >= elsewhereInterval {
				t.turn = (t.turn + 1) % len(t.all)
				t.restart(now, t.all[t.turn])
			}
			for len(t.addresses) > 0 && p.answers(t.addresses[0]) {
				t.next(now)
			}
			if len(t.addresses) == 0 {
				continue // it announces nothing yet
			}
			if t.waiting && !late[p] {
				changed = l.recordMiss(now, c, ports, p, name, most) || changed
			}
			if wait := p.peers.interval(now, t); wait > 0 && now.Sub(t.asked) < wait {
				continue
			}
			t.asked, t.waiting = now, ask(c, p, name, t)
		}
		changed = l.askUnreachable(now, c, ports, p) || changed
	}
	l.receptions = receptions(now, ports)
	return changed
}

// interval returns how long to wait between two questions to t, at least a tick.
func (s *peers) interval(now time.Time, t *target) time.Duration {
	switch silent := now.Sub(s.silence.since); {
	case !s.silence.long(now) && t.missed > 0:
		return 0
	case !s.silence.long(now):
		return probeInterval
	case silent > longLost:
		return longUnreachableInterval
	}
	return unreachableInterval
}

// answering reports whether any target answers.
func (s *peers) answering() bool {
	for _, t := range s.targets {
		if t.missed == 0 && !t.mac.IsZero() {
			return true
		}
	}
	return false
}

// long reports whether the silence has lasted long enough to be published.
func (s silence) long(now time.Time) bool {
	return !s.since.IsZero() && now.Sub(s.since) >= silenceTime
}

// checkSilence ends the silence of p's interface once a frame has come in. After a
// long one the targets are given the time to answer.
func (l *liveness) checkSilence(now time.Time, p *port) {
	s := p.peers.silence
	if s.since.IsZero() {
		return
	}
	if n, ok := p.received(); ok && n == s.received {
		return
	}
	p.peers.silence = silence{}
	if s.long(now) {
		l.log.Info("The interface receives frames again", "interface", p.name)
		for _, t := range p.peers.targets {
			t.missed, t.waiting = 0, false
		}
	}
}

// deaf reports whether it is this node that does not hear, rather than t that does not
// answer: no frame has come in since, and other nodes hear each other. One that does
// not answer this node is no witness alone, because it may be this node that it hears.
func (l *liveness) deaf(now time.Time, c *cluster, p *port, t *target) bool {
	if n, ok := p.received(); !ok || n != t.received {
		return false
	}
	if p.peers.silence.since.IsZero() {
		p.peers.silence = silence{now, t.received}
	}
	witnesses := 0
	for _, name := range c.heardBy(p.key.index) {
		_, gone := p.peers.unreachable[name]
		if witnesses++; p.peers.targets[name] == nil && !gone {
			witnesses++
		}
	}
	return witnesses > 1
}

// receptions returns what the interfaces of ports receive. Of nodes that hear others
// only the first successors say so: they are enough.
func receptions(now time.Time, ports map[portKey]*port) map[int]elect.Reception {
	out := map[int]elect.Reception{}
	for _, p := range ports {
		switch s := &p.peers; {
		case s.close && now.Sub(s.answered) < answeredTime:
			out[p.key.index] = elect.Hearing
		case s.silence.long(now) && out[p.key.index] == elect.Untested:
			out[p.key.index] = elect.Silent
		}
	}
	return out
}

// askUnreachable asks those that are unreachable on p for what they should announce.
// One of which nothing is expected any longer is not unreachable.
func (l *liveness) askUnreachable(now time.Time, c *cluster, ports map[portKey]*port, p *port) (changed bool) {
	for name, gone := range p.peers.unreachable {
		interval := unreachableInterval
		if now.Sub(gone.since) > longLost {
			interval = longUnreachableInterval
		}
		if now.Sub(gone.asked) < interval {
			continue
		}
		a, expected := c.expected(p.key.six, name, gone.address)
		switch {
		case !expected:
			mark(ports, p, name, unreachable{})
			changed = true
		case a.IsValid():
			gone.asked = now
			p.peers.unreachable[name] = gone
			ask(c, p, name, &target{addresses: []netip.Addr{a}})
		}
	}
	return changed
}

// expected returns an address of a family that a node should announce, first if that
// is one, and reports whether it should announce any.
func (c *cluster) expected(six bool, name string, first netip.Addr) (a netip.Addr, any bool) {
	for addr, ad := range c.listed {
		if ad.Result.Announcer != name {
			continue
		}
		any = true
		if addr.Is6() == six && (!a.IsValid() || addr == first || a != first && addr.Less(a)) {
			a = addr
		}
	}
	return a, any
}

// ask asks the node that should announce the first of t's addresses. Before it has
// answered, and when it has not, everyone is asked in every way that there is: what
// does not get through says nothing about it. Nor does an error, for which ask
// returns false.
func ask(c *cluster, p *port, name string, t *target) bool {
	a := t.addresses[0]
	if !t.mac.IsZero() && t.missed == 0 {
		return p.conn.Probe(a, t.mac) == nil
	}
	asked := p.conn.Probe(a, wire.MAC{}) == nil
	for _, mac := range c.hardware(name, a) {
		asked = p.conn.Probe(a, mac) == nil && asked
	}
	p.question(a)
	return asked
}

// recordMiss counts a question to an announcer that was not answered.
func (l *liveness) recordMiss(now time.Time, c *cluster, ports map[portKey]*port, p *port, name string, most int) (changed bool) {
	t := p.peers.targets[name]
	grace := probeGrace
	if len(p.peers.unreachable) > 0 {
		grace = hurryProbeGrace + min(l.membership.Slack(), maxSlack)
	}
	switch {
	case l.membership.Stalled(name):
		// Membership is about to find out what is wrong with it; it may just wait for
		// its turn on busy cores.
		return false
	case t.mac.IsZero() && t.asked.Sub(t.since) < grace:
		return false
	}
	if t.missed++; t.missed == 1 {
		t.received, _ = p.received()
	}
	if _, ok := p.peers.unreachable[name]; t.missed < most || ok || !c.member(name).Alive() {
		return false
	}
	if !p.peers.answering() {
		p.peers.answered = time.Time{}
	}
	if l.deaf(now, c, p, t) {
		return false
	}
	l.log.Info("An announcer is alive but does not answer on this link", "node", name, "interface", p.name, "address", t.addresses[0])
	p.peers.unanswered[t.addresses[0]] = true
	mark(ports, p, name, unreachable{since: t.asked, address: t.addresses[0], asked: t.asked})
	return true
}

// advertised takes an advertisement on p of a node, or of a conflicting host. That a
// node is there it has to prove.
func (l *liveness) advertised(now time.Time, ports map[portKey]*port, p *port, from claim.Peer, m wire.Message) (changed bool) {
	name := from.Name
	delete(p.peers.unanswered, m.Address)
	if name != "" && !from.Hint {
		p.peers.answered = now
	}
	if gone, ok := p.peers.unreachable[name]; ok && !from.Hint && (gone.address == m.Address || now.Sub(gone.since) >= unreachableHold) {
		l.log.Info("An announcer answers on this link again", "node", name, "interface", p.name)
		mark(ports, p, name, unreachable{})
		changed = true
	}
	for asked, t := range p.peers.targets {
		if name == asked && len(t.addresses) == 0 && slices.Contains(t.all, m.Address) {
			t.restart(now, m.Address) // it has taken it since
		}
		switch {
		case !t.is(m.Address):
		case name == "" && from.Host == "" && t.waiting:
			t.next(now) // the announcer leaves it to a conflicting host
		case name == "":
		case name == asked && from.Hint:
		case name == asked:
			t.waiting, t.missed, t.mac = false, 0, m.From
		default:
			t.next(now) // which says nothing about the one that was asked
		}
	}
	return changed
}

// probed takes a probe of a node of ours on p: it is there, and looks at the link
// before it answers, as after a restart.
func (l *liveness) probed(now time.Time, p *port, name string, a netip.Addr) {
	if t := p.peers.targets[name]; t != nil && t.is(a) {
		t.restart(now, t.addresses...)
	}
}

// confirm asks a node that is unreachable on p, and seems to be back there. It will
// be heard again.
func (l *liveness) confirm(now time.Time, p *port, m wire.Message) {
	if now.Sub(p.peers.confirmed) >= probeTick {
		p.peers.confirmed = now
		_ = p.conn.Probe(m.Address, m.From)
	}
}

// mark records for both families on p's interface that a node is unreachable there;
// the zero value for one that is back.
func mark(ports map[portKey]*port, p *port, name string, gone unreachable) {
	for _, o := range ports {
		switch {
		case o.key.index != p.key.index:
		case gone != unreachable{}:
			o.peers.unreachable[name] = gone
		default:
			delete(o.peers.unreachable, name)
		}
	}
}
