// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// heardBacklog is how many messages may wait for the loop.
const heardBacklog = 8192

// retryPort is how long a socket that could not be opened is left alone.
const retryPort = time.Second

// loop is the state of the Speaker's one goroutine.
type loop struct {
	s   *Speaker
	log logr.Logger
	ctx context.Context // of the sockets

	// Inputs as last seen.
	snap    *Snapshot
	links   []link
	view    map[string]members.Member
	leaving bool
	settled bool
	keyedAt time.Time

	// The last election.
	dirty bool // it has to be held again, as soon as ready
	nodes []elect.Node
	lost  map[string]time.Time // since when a node that is not alive is lost
	calm  time.Time            // until then announcements are repeated often
	shout bool                 // everything announced has to be announced again

	patrolAt time.Time
	results  map[netip.Addr]elect.Result
	macs     map[wire.MAC]owner
	told     map[string]facts // what the others have told, by node
	aliases  map[alias][]wire.MAC

	inherited map[netip.Addr]bool      // strays are passed on as an agent before this one left it
	ending    map[netip.Addr]time.Time // when passing them on ends

	ports    map[portKey]*port
	retry    map[portKey]time.Time
	queue    deadlines
	heard    chan heard
	reported map[netip.Addr]Report
	touched  map[netip.Addr]bool // to be reported
	counted  time.Time
}

func (l *loop) init(s *Speaker) {
	l.s = s
	l.results, l.lost = map[netip.Addr]elect.Result{}, map[string]time.Time{}
	l.ports, l.retry = map[portKey]*port{}, map[portKey]time.Time{}
	l.heard = make(chan heard, heardBacklog)
	l.reported, l.touched = map[netip.Addr]Report{}, map[netip.Addr]bool{}
	l.inherited, l.ending = map[netip.Addr]bool{}, map[netip.Addr]time.Time{}
	if s.cfg.Strays != nil {
		for _, addr := range s.cfg.Strays.Addresses() {
			l.inherited[addr] = true
		}
	}
}

// run serves until ctx ends and every address has been handed over, or until
// inner ends.
func (l *loop) run(ctx, inner context.Context, links <-chan []link) error {
	l.ctx, l.log = inner, logr.FromContextOrDiscard(ctx)
	defer l.close()
	done := ctx.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(l.next(time.Now()))
		select {
		case <-inner.Done():
			return nil
		case <-done:
			done = nil
			l.leaving, l.dirty = true, true
			l.log.Info("Handing addresses over", "addresses", l.answered())
		case <-l.s.updated:
			l.dirty = true
		case l.links = <-links:
			l.dirty = true
		case <-l.s.members.Changed():
			l.dirty = true
		case h := <-l.heard:
			l.hear(time.Now(), h)
			l.drain()
		case <-timer.C:
		}
		l.step(time.Now())
		if l.leaving && l.answered() == 0 {
			return nil
		}
	}
}

// drain takes what else has been heard, so that a burst costs one step.
func (l *loop) drain() {
	for range heardBacklog {
		select {
		case h := <-l.heard:
			l.hear(time.Now(), h)
		default:
			return
		}
	}
}

// step does everything that is due.
func (l *loop) step(now time.Time) {
	l.reopen(now)
	if l.dirty {
		l.elect(now)
	}
	l.queue.run(now, func(e *entry) {
		before, _ := e.machine.State()
		e.machine.Tick(now)
		l.after(now, e, before)
	})
	l.patrol(now)
	for _, p := range l.ports {
		if p.dirty || !p.again.IsZero() && !now.Before(p.again) {
			l.listen(p)
		}
	}
	l.report(now)
}

// next is how long nothing is due.
func (l *loop) next(now time.Time) time.Duration {
	wait := time.Second // counters, sockets that failed, calm
	if !l.settled && !l.keyedAt.IsZero() {
		wait = 10 * time.Millisecond // for settleTime at most
	}
	for _, p := range l.ports {
		if len(p.beats)+len(p.missing) > 0 {
			wait = min(wait, l.patrolAt.Sub(now))
		}
	}
	if l.dirty && l.settled {
		wait = 0
	}
	if at, ok := l.queue.next(); ok {
		wait = min(wait, at.Sub(now))
	}
	return max(wait, 0)
}

// ready tells whether the loop knows enough to elect: a snapshot, a key, and the
// peers' gossip or settleTime without it.
func (l *loop) ready(now time.Time) bool {
	l.s.mu.Lock()
	l.snap = l.s.snapshot
	l.s.mu.Unlock()
	if l.snap == nil || l.links == nil || !l.s.sealer.keyed() {
		return false
	}
	if l.keyedAt.IsZero() {
		l.keyedAt = now
	}
	if !l.settled && (l.s.members.Joined() && l.informed() || now.Sub(l.keyedAt) >= settleTime) {
		l.settled = true
		l.log.Info("Membership is settled", "members", len(l.view), "elapsed", now.Sub(l.keyedAt).String())
	}
	return l.settled
}

// informed tells whether every peer that is alive has told its facts.
func (l *loop) informed() bool {
	for _, m := range l.view {
		if m.Alive && m.Facts == nil {
			return false
		}
	}
	return true
}

// elect takes all inputs anew and has every machine act on the result.
func (l *loop) elect(now time.Time) {
	start := time.Now()
	l.view = l.s.members.View()
	ready := l.ready(now)
	l.s.cfg.Membership(l.view)
	l.s.cfg.Metrics.members.Set(float64(l.alive()))
	if l.snap == nil || l.links == nil {
		return
	}
	addresses := make([]elect.Address, 0, len(l.snap.Addresses))
	for _, a := range l.snap.Addresses {
		addresses = append(addresses, elect.Address{Addr: a.Addr, Pool: &a.Pool.Pool, Local: a.Local})
	}
	mine := relevant(l.links, addresses)
	own := facts{Starting: l.snap.Starting, InSync: l.snap.InSync, Leaving: l.leaving}
	for _, k := range mine {
		own.Links = append(own.Links, fact{Interface: k.Interface, MAC: k.MAC, Ports: k.Ports})
	}
	own = l.tell(own)
	if !ready {
		return
	}
	l.dirty = false
	nodes := judged(l.snap, l.view, l.s.cfg.Node, own)
	l.contact(now, nodes)
	l.nodes = nodes
	l.identify()
	results := elect.Elect(l.nodes, addresses)
	l.act(now, addresses, mine, results)
	l.s.members.Watch(l.watch(results))
	l.s.cfg.Metrics.election.Observe(time.Since(start).Seconds())
}

// tell gives this node's facts to the others, and gives what they are told: this node
// is judged by that, too, here as there.
func (l *loop) tell(own facts) facts {
	b, whole := own.encode()
	if !whole {
		l.log.Info("Too many interfaces to tell the other nodes; narrow the pools' interfaces", "interfaces", len(own.Links))
	}
	if err := l.s.members.SetFacts(b); err != nil {
		l.log.Error(err, "Telling facts failed")
	}
	if err := l.s.members.SetOldFacts(own.encodeOld()); err != nil {
		l.log.Error(err, "Telling facts to agents of a former version failed")
	}
	told, _ := decodeFacts(b)
	return told
}

func (l *loop) alive() int {
	n := 0
	for _, m := range l.view {
		if m.Alive {
			n++
		}
	}
	return n
}

// identify refreshes by what a sender is known.
func (l *loop) identify() {
	names := map[string]bool{}
	l.told = make(map[string]facts, len(l.view))
	l.macs, l.aliases = map[wire.MAC]owner{}, map[alias][]wire.MAC{}
	for _, n := range l.snap.Nodes {
		names[n.Name] = true
	}
	for name, m := range l.view {
		names[name] = m.Old
		f, _ := decodeFacts(m.Facts)
		l.told[name] = f
		for _, k := range f.Links {
			l.own(name, k.Name, k.MAC, k.Ports)
		}
	}
	for _, k := range l.links {
		l.own(l.s.cfg.Node, k.Name, k.MAC, k.Ports)
	}
	delete(names, l.s.cfg.Node)
	l.s.sealer.know(names)
}

// owner is the interface of a node that has a hardware address.
type owner struct{ node, iface string }

// alias is the hardware address of a bond's port.
type alias struct {
	node string
	mac  wire.MAC
}

// own notes whose the hardware addresses of an interface are. Those of its ports
// are its own as well: a bond in mode balance-alb puts them in its ARP replies.
func (l *loop) own(node, iface string, mac wire.MAC, ports []wire.MAC) {
	l.macs[mac] = owner{node, iface}
	for _, p := range ports {
		if p != mac {
			l.macs[p] = owner{node, iface}
			l.aliases[alias{node, p}] = append(l.aliases[alias{node, p}], mac)
		}
	}
}

// maxWatched is how many peers are probed directly where there are more nodes.
const maxWatched = 12

// watch names the peers that this node would succeed: all in a small cluster,
// else the announcers of addresses of which it is first or second in line.
func (l *loop) watch(results []elect.Result) []string {
	self := l.s.cfg.Node
	if len(l.snap.Nodes) <= maxWatched+1 {
		var out []string
		for _, n := range l.snap.Nodes {
			if n.Name != self {
				out = append(out, n.Name)
			}
		}
		return out
	}
	count := map[string]int{}
	for _, r := range results {
		if rank := r.Rank(self); rank == 1 || rank == 2 {
			count[r.Announcer]++
		}
	}
	out := slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		if count[a] != count[b] {
			return count[b] - count[a]
		}
		if elect.Outranks(netip.IPv4Unspecified(), a, b) {
			return -1
		}
		return 1
	})
	return out[:min(len(out), maxWatched)]
}

// hear gives a message to the machine that it is about.
func (l *loop) hear(now time.Time, h heard) {
	if l.ports[h.port.key] != h.port {
		return // the port was closed meanwhile
	}
	name, level := l.s.sealer.sender(h.Message, h.port.key.mac, func(node string, mac wire.MAC) []wire.MAC {
		return l.aliases[alias{node, mac}]
	})
	if level == replayed {
		l.s.cfg.Metrics.replayed.Inc()
		return
	}
	from := claim.Peer{Name: name, MAC: h.From, Hint: level == hinted}
	if name == "" {
		host := l.macs[h.From]
		from.Host, from.HostInterface = host.node, host.iface
		if dead, ok := l.view[host.node]; ok && !dead.Alive {
			e := h.port.entries[h.Address]
			from.HostDead, from.Cached = true, dead.Gone() || e != nil && e.former == host.node
		}
	}
	if name == l.s.cfg.Node || from.Host == l.s.cfg.Node {
		return // our own, through another interface on the same link
	}
	member, known := l.view[name]
	_, missing := h.port.missing[name]
	apart := missing || known && !member.Alive
	switch h.Kind {
	case wire.Claim:
		l.seen(now, h.port, from, h.Message)
	case wire.Probe:
		l.looking(now, h.port, name, h.Address)
	}
	if apart && h.Kind == wire.Claim {
		// It may have announced the same addresses as we, out of hearing.
		l.shoutOn(now, h.port.key.index)
	}
	if missing && h.Kind == wire.Claim && from.Hint {
		l.press(now, h.port, h.Message)
	}
	if e := h.port.entries[h.Address]; e != nil {
		from.Alive, from.Doubted = member.Alive, apart
		l.tellMachine(now, e, h, from)
	}
	if h.Kind == wire.Claim && name != "" && h.To != h.port.key.mac {
		l.announced(now, h.Address, name) // and has not just answered us
	}
}

func (l *loop) tellMachine(now time.Time, e *entry, h heard, from claim.Peer) {
	before, _ := e.machine.State()
	if from.Name != "" {
		// Of two nodes of one grade the failback decides; a worse one has to go.
		r := l.results[h.Address]
		from.Eligible = r.Rank(from.Name) >= 0 && r.Grade(from.Name) <= r.Grade(l.s.cfg.Node)
		from.Outranks = elect.Outranks(h.Address, from.Name, l.s.cfg.Node)
	}
	e.machine.Hear(now, h.Kind, from)
	l.after(now, e, before)
}

// press asks a node that is missing on p, and seems to be back there.
func (l *loop) press(now time.Time, p *port, m wire.Message) {
	if now.Sub(p.pressed) >= patrolTick {
		p.pressed = now
		_ = p.conn.Probe(m.Address, m.From) // it will be heard again
	}
}

// shoutOn announces everything on an interface again, in both families, once a
// second at most.
func (l *loop) shoutOn(now time.Time, index int) {
	for _, p := range l.ports {
		if p.key.index != index || now.Sub(p.shouted) <= time.Second {
			continue
		}
		p.shouted = now
		for _, e := range p.entries {
			e.machine.Shout()
		}
	}
}

// after keeps the books after a machine may have changed its state.
func (l *loop) after(now time.Time, e *entry, before claim.State) {
	l.queue.put(e)
	state, _ := e.machine.State()
	l.touched[e.addr] = true
	if state == before {
		return
	}
	l.log.V(1).Info("Address changed state", "address", e.addr, "interface", e.port.name, "from", before.String(), "to", state.String())
	if before == claim.Held && state == claim.Probing {
		l.recheck(now, e)
	}
}

// recheck has the other addresses looked at whose holder has fallen silent on
// one.
func (l *loop) recheck(now time.Time, silent *entry) {
	for _, e := range silent.port.entries {
		if e != silent && e.machine.Holder().MAC == silent.machine.Holder().MAC {
			e.machine.Recheck(now)
			l.queue.put(e)
		}
	}
}

// answered is how many (address, interface) this node answers for.
func (l *loop) answered() int {
	n := 0
	for _, p := range l.ports {
		for _, e := range p.entries {
			if e.machine.Answers() {
				n++
			}
		}
	}
	return n
}
