// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// joinTimeout is how long a new Speaker waits for its peers' gossip before it
// believes that those it has not heard are dead.
const joinTimeout = time.Second

// loop is the state of the Speaker's one goroutine. It holds the elections and
// drives the Announcers.
type loop struct {
	cfg        Config
	log        logr.Logger
	members    *members.Members
	announcers map[Kind]Announcer
	reporter   *reporter

	links   []links.Link // nil before the first
	leaving bool
	changed bool // an election is due, as soon as ready

	receptions map[Kind]map[int]elect.Reception // as the Announcers had them last
	deaf       []string                         // this node's interfaces that receive nothing, as last reported

	keyedAt time.Time // since when there is a key
	joined  bool      // the membership is known, as far as it can be
}

func newLoop(cfg Config, m *members.Members, log logr.Logger) *loop {
	return &loop{cfg: cfg, log: log, members: m, announcers: map[Kind]Announcer{}, receptions: map[Kind]map[int]elect.Reception{}, reporter: newReporter(cfg.Node, cfg.Metrics, log)}
}

func (l *loop) leave() {
	l.leaving, l.changed = true, true
	l.log.Info("Handing addresses over", "addresses", l.active())
}

// active returns how many announcements bring traffic to this node.
func (l *loop) active() int {
	n := 0
	for _, a := range l.announcers {
		n += a.Active()
	}
	return n
}

// step does everything that is due.
func (l *loop) step(now time.Time, snap *Snapshot) {
	if l.changed {
		l.elect(now, snap)
	}
	for kind, a := range l.announcers {
		a.Step(now)
		if r := a.Receptions(); !maps.Equal(r, l.receptions[kind]) {
			l.receptions[kind], l.changed = r, true
		}
	}
	l.report(now)
}

// next returns for how long nothing is due.
func (l *loop) next(now time.Time) time.Duration {
	wait := time.Second
	if !l.joined && !l.keyedAt.IsZero() {
		wait = 10 * time.Millisecond // for joinTimeout at most
	}
	if l.changed && l.joined {
		wait = 0
	}
	for _, a := range l.announcers {
		wait = min(wait, a.Next(now))
	}
	return max(wait, 0)
}

func (l *loop) close(now time.Time) {
	for _, a := range l.announcers {
		a.Close(now)
	}
	l.report(now)
}

func (l *loop) report(now time.Time) {
	for _, a := range l.announcers {
		for _, r := range a.Reports(now) {
			l.reporter.take(r)
		}
	}
	for _, r := range l.reporter.changes() {
		l.cfg.Report(r)
	}
}

// ready reports whether the loop knows enough to elect: interfaces, a key, and the
// peers' gossip or joinTimeout without it.
func (l *loop) ready(now time.Time, view map[string]members.Member) bool {
	if l.members.Keys() == nil {
		return false
	}
	if l.keyedAt.IsZero() {
		l.keyedAt = now
	}
	if !l.joined && (l.members.Joined() && informed(view) || now.Sub(l.keyedAt) >= joinTimeout) {
		l.joined = true
		l.log.Info("Membership is known", "members", len(view), "elapsed", now.Sub(l.keyedAt).String())
	}
	return l.joined
}

// informed reports whether every peer that is alive has published its Info.
func informed(view map[string]members.Member) bool {
	for _, m := range view {
		if m.Alive() && m.Info == nil {
			return false
		}
	}
	return true
}

// elect reads all inputs, holds the elections, and passes each Announcer what it has
// to announce.
func (l *loop) elect(now time.Time, snap *Snapshot) {
	start := time.Now()
	view := l.members.View()
	alive := 0
	for _, m := range view {
		if m.Alive() {
			alive++
		}
	}
	l.cfg.Membership(view)
	l.cfg.Metrics.members.Set(float64(alive))
	if snap == nil || l.links == nil {
		return
	}
	ready := l.ready(now, view)
	ads := advertisements(snap)
	relevant := links.Relevant(l.links, snap.elected())
	own := l.publish(snap, relevant)
	if !ready {
		return
	}
	l.changed = false
	infos := decodeInfos(view)
	nodes := electNodes(snap, view, infos, l.cfg.Node, own)
	elect.MarkDeaf(nodes)
	l.reportDeaf(nodes)
	ips := make(map[string][]netip.Addr, len(snap.Nodes))
	for _, n := range snap.Nodes {
		ips[n.Name] = n.InternalIPs
	}
	results := make(map[netip.Addr]elect.Result, len(snap.Addresses))
	for kind, a := range l.announcers {
		hold(nodes, ads[kind])
		for i := range ads[kind] {
			results[ads[kind][i].Addr] = ads[kind][i].Result
		}
		a.Apply(now, &Desired{
			Advertisements: ads[kind], Nodes: nodes, InternalIPs: ips, Members: view, Infos: infos,
			Links: l.links, Relevant: relevant, Leaving: l.leaving,
		})
	}
	l.reporter.elected(snap, nodes, results)
	l.members.Watch(watched(l.cfg.Node, snap.Nodes, results))
	l.cfg.Metrics.election.Observe(time.Since(start).Seconds())
}

// reportDeaf passes a change to Config.Deaf.
func (l *loop) reportDeaf(nodes []elect.Node) {
	var deaf []string
	if i := slices.IndexFunc(nodes, func(n elect.Node) bool { return n.Name == l.cfg.Node }); i >= 0 {
		for _, k := range nodes[i].Interfaces {
			if k.Reception == elect.Deaf {
				deaf = append(deaf, k.Name)
			}
		}
	}
	if !slices.Equal(deaf, l.deaf) {
		l.deaf = deaf
		l.log.Info("Interfaces on which this node receives nothing, while other nodes hear each other there, have changed", "interfaces", deaf)
		l.cfg.Deaf(deaf)
	}
}

// advertisements returns a snapshot's addresses by Kind, not elected yet.
func advertisements(snap *Snapshot) map[Kind][]Advertisement {
	out := map[Kind][]Advertisement{}
	for i := range snap.Addresses {
		a := &snap.Addresses[i]
		out[a.Pool.Kind] = append(out[a.Pool.Kind], Advertisement{Address: a.elected(), Preempt: a.Pool.Preempt, Recorded: a.Recorded})
	}
	return out
}

// hold elects for the addresses of one Kind, whose nodes share its load.
func hold(nodes []elect.Node, ads []Advertisement) {
	addresses := make([]elect.Address, 0, len(ads))
	for i := range ads {
		addresses = append(addresses, ads[i].Address)
	}
	for i, r := range elect.Elect(nodes, addresses) {
		ads[i].Result = r
	}
}

// publish sends this node's Info to the others and returns it as they decode it: the
// election uses the same here as there.
func (l *loop) publish(snap *Snapshot, relevant []links.Link) nodeinfo.Info {
	own := nodeinfo.Info{Starting: snap.Starting, InSync: snap.InSync, Leaving: l.leaving}
	for i := range relevant {
		k := relevant[i].Info()
		for _, found := range l.receptions {
			k.Reception = max(k.Reception, found[relevant[i].Index])
		}
		own.Interfaces = append(own.Interfaces, k)
	}
	b, whole := own.Encode(members.MaxInfo)
	if !whole {
		l.log.Info("Too many interfaces to publish; narrow the pools' interfaces", "interfaces", len(own.Interfaces))
	}
	if err := l.members.SetInfo(b); err != nil {
		l.log.Error(err, "Publishing this node's interfaces failed")
	}
	if err := l.members.SetOldInfo(own.EncodeOld(members.MaxOldInfo)); err != nil {
		l.log.Error(err, "Publishing this node's interfaces to agents of a former version failed")
	}
	told, _ := nodeinfo.Decode(b)
	return told
}

func decodeInfos(view map[string]members.Member) map[string]nodeinfo.Info {
	out := make(map[string]nodeinfo.Info, len(view))
	for name, m := range view {
		if f, ok := nodeinfo.Decode(m.Info); ok {
			out[name] = f
		}
	}
	return out
}

// electNodes returns the election's nodes. own is what this node has published.
func electNodes(snap *Snapshot, view map[string]members.Member, infos map[string]nodeinfo.Info, self string, own nodeinfo.Info) []elect.Node {
	out := make([]elect.Node, 0, len(snap.Nodes))
	for _, n := range snap.Nodes {
		e := elect.Node{
			Name: n.Name, Labels: n.Labels, Excluded: n.Excluded, Cordoned: n.Cordoned, Deleting: n.Deleting, NoNetwork: n.NoNetwork,
		}
		f, told := own, true
		e.Alive = true
		if n.Name != self {
			e.Alive = view[n.Name].Alive()
			f, told = infos[n.Name]
		}
		if told {
			e.Starting, e.InSync, e.Leaving = f.Starting, f.InSync, f.Leaving
			e.Interfaces = make([]elect.Interface, 0, len(f.Interfaces))
			for _, k := range f.Interfaces {
				e.Interfaces = append(e.Interfaces, k.Interface)
			}
		}
		out = append(out, e)
	}
	return out
}

// maxWatched is how many peers are probed directly where there are more nodes.
const maxWatched = 12

// watched names the peers that this node would succeed: all in a small cluster,
// else the announcers of addresses of which it is first or second in line.
func watched(self string, nodes []Node, results map[netip.Addr]elect.Result) []string {
	if len(nodes) <= maxWatched+1 {
		var out []string
		for _, n := range nodes {
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
