// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/links"
)

// maxSlack bounds how much longer an answer is waited for on busy cores.
const maxSlack = 150 * time.Millisecond

// recheckSpacing is the least interval between questions to holders that
// membership has lost.
const recheckSpacing = time.Millisecond

// placement is one address and where it may be announced here.
type placement struct {
	*announce.Advertisement
	// on has the ports, and the result of the election as it is on the link of each:
	// without the nodes that are unreachable there.
	on map[*port]elect.Result
}

// place has the machines follow an election. Filters are opened before machines
// start to probe, so that no answer is missed.
func (a *Announcer) place(now time.Time) {
	placements := a.placements(now)
	a.addTargets(placements)
	for _, p := range a.ports.all {
		if p.filter.changed || p.filter.advertised != len(placements) {
			a.listen(now, p)
		}
	}
	a.updateTargets(now, placements)
	for _, p := range a.ports.all {
		a.liveness.plan(now, a.cluster, p, placements)
	}
	a.handover.prune(a.cluster)
}

// placements opens the ports that are needed and closes the others.
func (a *Announcer) placements(now time.Time) []placement {
	d := a.cluster.desired
	ifaces := links.Interfaces(d.Relevant)
	needed := map[portKey]bool{}
	out := make([]placement, len(d.Advertisements))
	for i := range out {
		out[i] = placement{&d.Advertisements[i], map[*port]elect.Result{}}
		for _, k := range elect.On(&out[i].Address, ifaces) {
			link := &d.Relevant[k]
			if !link.Up {
				continue
			}
			six := out[i].Addr.Is6()
			needed[portKey{link.Index, link.MAC, six}] = true
			if p := a.ports.get(now, link, six); p != nil {
				out[i].on[p] = out[i].Result
			}
		}
	}
	for key, p := range a.ports.all {
		if !needed[key] {
			a.ports.close(now, p)
		}
	}
	electOnLinks(d.Nodes, a.ports.all, out)
	return out
}

// electOnLinks holds elections again for the ports on which nodes are unreachable.
func electOnLinks(nodes []elect.Node, ports map[portKey]*port, placements []placement) {
	var addresses []elect.Address
	held := map[string][]elect.Result{} // by the nodes that are unreachable
	for _, p := range ports {
		if len(p.peers.unreachable) == 0 {
			continue
		}
		key := strings.Join(slices.Sorted(maps.Keys(p.peers.unreachable)), "/")
		if held[key] == nil {
			reachable := slices.Clone(nodes)
			for i := range reachable {
				if _, gone := p.peers.unreachable[reachable[i].Name]; gone {
					reachable[i].Alive = false
				}
			}
			if addresses == nil {
				for i := range placements {
					addresses = append(addresses, placements[i].Address)
				}
			}
			held[key] = elect.Elect(reachable, addresses)
		}
		for i := range placements {
			if _, on := placements[i].on[p]; on {
				placements[i].on[p] = held[key][i]
			}
		}
	}
}

// addTargets makes entries for addresses that this node is elected for, and has the
// questions heard that are about these.
func (a *Announcer) addTargets(placements []placement) {
	asked := make(map[*port]map[netip.Addr]bool, len(a.ports.all))
	for _, p := range a.ports.all {
		asked[p] = make(map[netip.Addr]bool, len(p.filter.asked))
	}
	for i := range placements {
		for p, result := range placements[i].on {
			addr := placements[i].Addr
			rank := result.Rank(a.cluster.self)
			if p.entries[addr] == nil && rank == 0 {
				p.entries[addr] = newEntry(addr, p, a.timing, a.cluster, a.handover, a.log)
			}
			if rank == 1 { // The next in line hears which hosts ask, to inform them when it takes over.
				asked[p][addr] = true
			}
		}
	}
	for _, p := range a.ports.all {
		for addr := range p.entries {
			asked[p][addr] = true
		}
		if !maps.Equal(asked[p], p.filter.asked) {
			p.filter.asked, p.filter.changed = asked[p], true
		}
	}
}

// listen sets what p hears.
func (a *Announcer) listen(now time.Time, p *port) {
	d := a.cluster.desired
	var advertised []netip.Addr
	for i := range d.Advertisements {
		if addr := d.Advertisements[i].Addr; addr.Is6() == p.key.six {
			advertised = append(advertised, addr)
		}
	}
	if err := p.listen(now, advertised); err != nil {
		a.log.Error(err, "Setting what to listen for failed, will try again", "interface", p.name)
	}
	p.filter.advertised = len(d.Advertisements)
}

// updateTargets sets what is wanted of every machine, and drops entries that are
// idle and not elected.
func (a *Announcer) updateTargets(now time.Time, placements []placement) {
	at := make(map[netip.Addr]*placement, len(placements))
	results := make(map[netip.Addr]elect.Result, len(placements))
	for i := range placements {
		at[placements[i].Addr] = &placements[i]
		results[placements[i].Addr] = placements[i].Result
	}
	refresh, recheck := a.intervals(now)
	slack := min(a.membership.Slack(), maxSlack)
	for _, p := range a.ports.all {
		for addr, e := range p.entries {
			want := a.want(now, e, at[addr], slack)
			want.Refresh, want.LostRecheck = spread(refresh, addr), recheck
			before, _ := e.machine.State()
			e.machine.Set(now, want)
			if a.decisions.reannounce {
				e.machine.Reannounce()
			}
			a.after(now, e, before)
			if state, _ := e.machine.State(); state == claim.Idle && want.Role != claim.Elected {
				a.queue.remove(e)
				delete(p.entries, addr)
				if l := at[addr]; l == nil || l.on[p].Rank(a.cluster.self) != 1 {
					delete(p.filter.asked, addr)
					p.filter.changed = true
				}
			}
		}
	}
	a.decisions.reannounce, a.decisions.results = false, results
}

// want returns what a machine has to do about its address; l is nil for one that is
// no longer announced.
func (a *Announcer) want(now time.Time, e *entry, l *placement, slack time.Duration) claim.Want {
	want, c := claim.Want{}, a.cluster
	if l == nil {
		if !c.silentOn(e.port.key.index, e.succession.former) {
			want.Slack = slack
		}
		return want
	}
	if result, on := l.on[e.port]; on {
		old, known := a.decisions.results[l.Addr]
		want = role(c, result, old)
		want.Preempt = l.Preempt
		elected := want.Role == claim.Elected
		if elected && e.machine.Role() != claim.Elected && !e.machine.Answers() {
			e.succession = newSuccession(now, c, l.Advertisement, old.Announcer, known)
		}
		want.SuppressGratuitous = e.succession.suppress(now, c.member(e.succession.former), elected)
		if result.Announcer != l.Result.Announcer {
			// For as long as the elected one is unreachable. If it is not, it stays.
			want.Preempt, want.Hurry = announce.Never, true
		}
	}
	former := e.succession.former
	if !c.silentOn(e.port.key.index, former) && (e.machine.Answers() || !c.linkDown(former, &l.Address)) {
		want.Slack = slack // else no answer has to be waited for
	}
	if e.machine.Answers() && want.Role != claim.Elected && want.Elected != "" {
		if macs := c.hardware(want.Elected, l.Addr); len(macs) > 0 {
			want.ElectedAt = macs[0]
		}
	}
	return want
}

// role turns an election's result into what a machine has to do. old is the one
// before.
func role(c *cluster, result, old elect.Result) claim.Want {
	want := claim.Want{Elected: result.Announcer}
	switch {
	case result.Announcer == c.self:
		want.Role = claim.Elected
		// The one elected before should no longer announce: clients may wait.
		want.Hurry = old.Announcer != "" && old.Announcer != c.self && !result.Preferred(old.Announcer)
	case result.Preferred(c.self):
		want.Role = claim.Standby
	case result.Rank(c.self) >= 0:
		want.Role = claim.Reluctant
	case c.desired.Leaving && result.Announcer == "":
		want.Role = claim.None // no successor to wait for
	default:
		want.Role = claim.Barred
	}
	return want
}

// intervals returns those of announcements of an address and of questions about it
// (claim.Want), and that of questions to a holder that membership has lost.
func (a *Announcer) intervals(now time.Time) (refresh, recheck time.Duration) {
	entries := 0
	for _, p := range a.ports.all {
		entries += len(p.entries) // a node that is unreachable on one is asked by liveness
	}
	refresh = a.timing.Refresh
	if every := a.contacts.interval(now, a.cluster.desired.Nodes); every > 0 {
		refresh = min(refresh, time.Duration(entries)*every)
	}
	return refresh, max(a.timing.LostRecheck, time.Duration(entries)*recheckSpacing)
}

// spread varies an interval by address, from three quarters to five quarters of
// it, so that many addresses do not stay in step.
func spread(d time.Duration, addr netip.Addr) time.Duration {
	return d*3/4 + time.Duration(elect.Score(addr, "spread")%1024)*d/2/1024
}
