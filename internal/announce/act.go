// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
)

// How often a node asks whether another has what it announces, for one address after
// the other: while a peer is out of contact, or was until calmAfter ago, and more
// slowly once contact has been lost for longLost. Whoever hears one that it holds
// dead announces everything (see hear), so one is enough.
const (
	lostRefresh     = 250 * time.Millisecond
	longLostRefresh = 5 * time.Second
	longLost        = 5 * time.Minute
	calmAfter       = 3 * time.Second
)

// maxSlack bounds how much longer an answer is waited for on busy cores.
const maxSlack = 150 * time.Millisecond

// recheckSpacing is the least interval between questions to holders that
// membership has lost.
const recheckSpacing = time.Millisecond

// act has the machines follow an election. Filters are opened before machines
// start to probe, so that no answer is missed.
func (l *loop) act(now time.Time, addresses []elect.Address, mine []link, results []elect.Result) {
	ifaces := interfaces(mine)
	open := map[portKey]bool{}
	wanted := make([]map[*port]bool, len(addresses)) // where each address is ours to announce
	for i := range addresses {
		on := elect.On(&addresses[i], ifaces)
		for _, k := range on {
			if !mine[k].Up {
				continue
			}
			key := portKey{mine[k].Index, mine[k].MAC, addresses[i].Addr.Is6()}
			open[key] = true
			if p := l.port(now, key, mine[k].Name); p != nil {
				p.own, p.subnets = mine[k].Own, mine[k].Subnets
				if wanted[i] == nil {
					wanted[i] = map[*port]bool{}
				}
				wanted[i][p] = true
			}
		}
	}
	for key, p := range l.ports {
		if !open[key] {
			l.closePort(now, p)
		}
	}
	local := l.elections(addresses, results)
	l.enroll(addresses, wanted, local)
	for _, p := range l.ports {
		if p.dirty || p.claimed != len(addresses) {
			l.listen(p)
		}
	}
	l.set(now, addresses, wanted, results, local)
	for _, p := range l.ports {
		l.plan(now, p, addresses, wanted, local[p])
	}
	l.forgetStrays()
}

// port gives the open port of key, or nil if it cannot be opened now.
func (l *loop) port(now time.Time, key portKey, name string) *port {
	if p := l.ports[key]; p != nil && p.conn.Bound() {
		p.name = name
		return p
	} else if p != nil {
		l.log.Info("An interface was deleted and made again, opening its socket anew", "interface", name)
		l.closePort(now, p)
	}
	if now.Before(l.retry[key]) {
		return nil
	}
	p, err := openPort(l.ctx, now, key, name, l.s, l.heard)
	if err != nil {
		l.retry[key] = now.Add(retryPort)
		l.log.Error(err, "Opening a socket failed, will try again", "interface", name)
		return nil
	}
	delete(l.retry, key)
	l.ports[key] = p
	return p
}

// reopen closes ports whose socket has failed, and has those tried again that
// could not be opened.
func (l *loop) reopen(now time.Time) {
	for _, p := range l.ports {
		select {
		case <-p.failed:
			l.closePort(now, p)
			l.dirty = true
			if now.Sub(p.opened) < retryPort { // else at once: its interface may be another one now
				l.retry[p.key] = now.Add(retryPort)
			}
		default:
		}
	}
	for key, at := range l.retry {
		if !now.Before(at) {
			delete(l.retry, key)
			l.dirty = true
		}
	}
	if !l.calm.IsZero() && !now.Before(l.calm) {
		l.dirty, l.calm = true, time.Time{} // back to the usual pace
	}
	if now.Sub(l.counted) >= time.Second {
		l.counted = now
		for _, p := range l.ports {
			l.count(p)
			l.dirty = l.dirty || !p.conn.Bound()
			for _, e := range p.entries {
				l.dirty = l.dirty || e.overdue(now)
			}
		}
		l.endStrays(now)
	}
}

// closePort stops everything on p.
func (l *loop) closePort(now time.Time, p *port) {
	for _, e := range p.entries {
		e.machine.Lost(now)
		l.touched[e.addr] = true
		l.queue.remove(e)
	}
	p.stop()
	l.count(p)
	delete(l.ports, p.key)
}

func (l *loop) close() {
	now := time.Now()
	for _, p := range l.ports {
		l.closePort(now, p)
	}
	l.report(now)
}

// count brings the metrics up to date with the socket's counters.
func (l *loop) count(p *port) {
	c := p.conn.Counters()
	name := "arp"
	if p.key.six {
		name = "ndp"
	}
	l.s.cfg.Metrics.answers.WithLabelValues(name).Add(float64(c.Answers - p.counted.Answers))
	l.s.cfg.Metrics.limited.WithLabelValues(name).Add(float64(c.Limited - p.counted.Limited))
	p.counted = c
}

// enroll makes entries for addresses that this node is elected for, and lets go
// of those that are idle and not elected.
func (l *loop) enroll(addresses []elect.Address, wanted []map[*port]bool, local map[*port][]elect.Result) {
	self := l.s.cfg.Node
	for i := range addresses {
		for p := range wanted[i] {
			if p.entries[addresses[i].Addr] == nil && local[p][i].Announcer == self {
				e := &entry{addr: addresses[i].Addr, port: p, loop: l}
				e.machine = claim.New(l.s.timing, e)
				p.entries[e.addr] = e
			}
		}
	}
	for _, p := range l.ports {
		asked := make(map[netip.Addr]bool, len(p.asked))
		for i := range addresses {
			// The next in line hears who asks, to tell them when it takes over.
			if a := addresses[i].Addr; p.entries[a] != nil || wanted[i][p] && local[p][i].Rank(self) == 1 {
				asked[a] = true
			}
		}
		for a := range p.entries {
			asked[a] = true
		}
		if !maps.Equal(asked, p.asked) {
			p.asked, p.dirty = asked, true
		}
	}
}

// listen sets filter and groups of p.
func (l *loop) listen(p *port) {
	all := make([]netip.Addr, 0, len(l.snap.Addresses))
	for _, a := range l.snap.Addresses {
		all = append(all, a.Addr)
	}
	if err := p.listen(all); err != nil {
		l.log.Error(err, "Setting what to listen for failed, will try again", "interface", p.name)
		p.again = time.Now().Add(retryPort)
	}
	p.claimed = len(all)
}

// set tells every machine what is wanted of it.
func (l *loop) set(now time.Time, addresses []elect.Address, wanted []map[*port]bool, results []elect.Result, local map[*port][]elect.Result) {
	defer func() { l.shout = false }()
	old := l.results
	l.results = make(map[netip.Addr]elect.Result, len(results))
	for i := range results {
		l.results[addresses[i].Addr] = results[i]
		l.touched[addresses[i].Addr] = true
	}
	listed := make(map[netip.Addr]int, len(addresses))
	for i := range addresses {
		listed[addresses[i].Addr] = i
	}
	for addr := range l.reported {
		l.touched[addr] = true // some may not be listed any more
	}
	refresh, recheck := l.pace(now)
	slack := min(l.s.members.Slack(), maxSlack)
	for _, p := range l.ports {
		for addr, e := range p.entries {
			want := claim.Want{Refresh: spread(refresh, addr), LostRecheck: recheck}
			if i, ok := listed[addr]; ok && wanted[i][p] {
				want.Failback = l.snap.Addresses[i].Pool.Failback
				l.role(&want, addr, local[p][i], old[addr])
				former, starting := l.former(now, i, &addresses[i], old)
				want.Quiet = l.hush(now, e, want.Role == claim.Elected, former, starting)
				if local[p][i].Announcer != results[i].Announcer {
					// For as long as the elected one is missing. If it is not, it stays.
					want.Failback, want.Hurry = claim.Never, true
				}
			}
			if !l.gone(p, e.former) {
				want.Slack = slack
			}
			if i, ok := listed[addr]; ok && want.Slack > 0 && !e.machine.Answers() && l.unplugged(e.former, &addresses[i]) {
				want.Slack = 0
			}
			if e.machine.Answers() && want.Role != claim.Elected && want.Elected != "" {
				if at := l.hardware(want.Elected, addr); len(at) > 0 {
					want.ElectedAt = at[0]
				}
			}
			before, _ := e.machine.State()
			e.machine.Set(now, want)
			if l.shout {
				e.machine.Shout()
			}
			l.after(now, e, before)
			if state, _ := e.machine.State(); state == claim.Idle && want.Role != claim.Elected {
				l.queue.remove(e)
				delete(p.entries, addr)
				if i, ok := listed[addr]; !ok || !wanted[i][p] || local[p][i].Rank(l.s.cfg.Node) != 1 {
					delete(p.asked, addr)
					p.dirty = true
				}
			}
		}
	}
}

// role turns an election's result into what a machine has to do.
func (l *loop) role(want *claim.Want, addr netip.Addr, result, old elect.Result) {
	self := l.s.cfg.Node
	want.Elected = result.Announcer
	switch {
	case result.Announcer == self:
		want.Role = claim.Elected
		// The one elected before should not announce any more: clients may wait.
		want.Hurry = old.Announcer != "" && old.Announcer != self && !result.Preferred(old.Announcer)
	case result.Preferred(self):
		want.Role = claim.Standby
	case result.Rank(self) >= 0:
		want.Role = claim.Reluctant
	case l.leaving && result.Announcer == "":
		want.Role = claim.None // no successor to wait for
	default:
		want.Role = claim.Barred
	}
}

// maxQuiet is how long clients are left with a node whose agent is gone. One
// that is upgraded or restarted is back sooner; its rules grow stale. maxReturn is
// how long such an agent, once it is back, may take until it can announce again.
const (
	maxQuiet  = time.Minute
	maxReturn = 5 * time.Second
)

// former is who announced an address before. Of the time before this agent
// started the API tells. starting says that the node's agent has only just come
// back and is not ready yet, or that it was so when this agent started: when
// all are restarted at once, the first one to be ready takes no clients from where
// their connections are.
func (l *loop) former(now time.Time, i int, address *elect.Address, old map[netip.Addr]elect.Result) (node string, starting bool) {
	r, known := old[address.Addr]
	if node = r.Announcer; !known {
		node = l.snap.Addresses[i].Recorded
	}
	if known && now.Sub(l.view[node].Since) > maxReturn {
		return node, false
	}
	n := slices.IndexFunc(l.nodes, func(n elect.Node) bool { return n.Name == node })
	if n < 0 {
		return node, false
	}
	reason := elect.Judge(&l.nodes[n], address)
	return node, reason == elect.NotProgrammed || reason == elect.NotYetReporting
}

// hush tells whether an address is to be answered for without announcing it:
// this node was elected because the former one's agent died, or is only starting,
// while its kernel goes on forwarding. It stays so when that agent is back, until
// it takes over, or for as long as that may take; also if this node is not elected
// in between, because what the others know of an agent that is back may be from
// before.
func (l *loop) hush(now time.Time, e *entry, elected bool, former string, starting bool) bool {
	if elected && !e.elected && !e.machine.Answers() {
		e.former, e.since, e.back = former, now, time.Time{}
		e.quiet = starting || l.view[former].HostAnswers
	}
	e.elected = elected
	switch m := l.view[e.former]; {
	case !e.quiet:
	case now.Sub(e.since) > maxQuiet:
		e.quiet = false
	case m.Alive && e.back.IsZero():
		e.back = now
	case m.Alive:
		e.quiet = now.Sub(e.back) <= maxReturn
	case elected && !m.HostAnswers:
		e.quiet = false
	default:
		e.back = time.Time{}
	}
	return e.quiet
}

// overdue tells whether e's time of being quiet is over and nobody has noticed.
func (e *entry) overdue(now time.Time) bool {
	return e.quiet && (now.Sub(e.since) > maxQuiet || !e.back.IsZero() && now.Sub(e.back) > maxReturn)
}

// gone tells whether a node is known not to be on p's link: neither its agent nor
// its kernel answers there. Then no answer has to be waited for on busy cores.
func (l *loop) gone(p *port, node string) bool {
	if !l.view[node].NodeSilent {
		return false
	}
	i := slices.IndexFunc(l.links, func(k link) bool { return k.Index == p.key.index })
	n := slices.IndexFunc(l.snap.Nodes, func(n Node) bool { return n.Name == node })
	if i < 0 || n < 0 {
		return false
	}
	return slices.ContainsFunc(l.links[i].Subnets, func(s netip.Prefix) bool {
		return slices.ContainsFunc(l.snap.Nodes[n].InternalIPs, s.Contains)
	})
}

// unplugged tells whether a node has said itself that the interfaces on which it
// announces an address are down. No answer has to be waited for then.
func (l *loop) unplugged(node string, a *elect.Address) bool {
	links := l.announcing(node, a)
	return len(links) > 0 && !slices.ContainsFunc(links, func(k fact) bool { return k.Up })
}

// contact notices nodes that are out of contact or were until just now. Either
// may announce what we announce; so who comes back is told at once.
func (l *loop) contact(now time.Time, nodes []elect.Node) {
	was := make(map[string]bool, len(l.nodes))
	for _, n := range l.nodes {
		was[n.Name] = n.Alive
	}
	for _, n := range nodes {
		alive, known := was[n.Name]
		switch {
		case !n.Alive && (alive || !known):
			l.lost[n.Name] = now
		case n.Alive && known && !alive:
			l.shout = true
			l.lost[n.Name] = time.Time{}
			l.calm = now.Add(calmAfter)
		}
	}
}

// pace gives the interval of announcements of an address and of questions about it
// (claim.Want), and that of questions to a holder that membership has lost.
func (l *loop) pace(now time.Time) (refresh, recheck time.Duration) {
	entries := 0
	every := time.Duration(0)
	if now.Before(l.calm) {
		every = lostRefresh
	}
	apart := func(since time.Time) {
		if now.Sub(since) < longLost {
			every = lostRefresh
		} else if every == 0 {
			every = longLostRefresh
		}
	}
	for _, p := range l.ports {
		entries += len(p.entries) // who is missing on one is asked, see askMissing
	}
	for _, n := range l.nodes {
		if !n.Alive {
			apart(l.lost[n.Name])
		}
	}
	refresh = l.s.timing.Refresh
	if every > 0 {
		refresh = min(refresh, time.Duration(entries)*every)
	}
	return refresh, max(l.s.timing.LostRecheck, time.Duration(entries)*recheckSpacing)
}

// spread varies an interval by address, from three quarters to five quarters of
// it, so that many addresses do not stay in step.
func spread(d time.Duration, addr netip.Addr) time.Duration {
	return d*3/4 + time.Duration(elect.Score(addr, "spread")%1024)*d/2/1024
}
