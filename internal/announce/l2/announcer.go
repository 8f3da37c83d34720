// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// heardBacklog is how many messages may wait for Step.
const heardBacklog = 8192

// Config is what Announcers need in addition to their announce.Env.
type Config struct {
	// Handover, which may be nil, is informed about the node that knows the open
	// connections of an address that has moved here.
	Handover Handover
	// Metrics to count in; nil for none.
	Metrics *Metrics
}

// New returns what makes an Announcer for announce.L2.
func New(cfg Config) announce.NewAnnouncer {
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	return func(env announce.Env) announce.Announcer {
		log := logr.FromContextOrDiscard(env.Context)
		a := newAnnouncer(env.Node, env.Members, cfg, log)
		auth := newFrameAuth(env.Node, env.Members)
		a.auth, a.ports.open = auth, opener{ctx: env.Context, auth: auth, metrics: cfg.Metrics, wake: env.Wake, heard: a.heard}.open
		return a
	}
}

// Membership is what an Announcer needs of the members in addition to
// announce.Desired. *members.Members is one.
type Membership interface {
	keyring
	// Slack returns by how much everything takes longer at present because cores are
	// busy.
	Slack() time.Duration
	// Stalled reports whether a node that is alive has left a ping unanswered.
	Stalled(node string) bool
	// Probes reports whether nodes are probed directly at all.
	Probes() bool
}

var _ Membership = (*members.Members)(nil)

// Announcer is clock and select: it holds the parts and has each do what is due.
type Announcer struct {
	log        logr.Logger
	membership Membership
	metrics    *Metrics
	timing     claim.Timing
	auth       sender

	cluster   *cluster // its content is replaced by Apply; never nil
	ports     *ports
	contacts  contacts
	liveness  liveness
	handover  *handover
	reports   reports
	queue     deadlines
	heard     chan heard
	decisions decisions
	housekept time.Time // when what is done once a second was done
}

// decisions is what the next placement has to know of the last one.
type decisions struct {
	applied    bool // there was an Apply
	due        bool // placement has to be done
	reannounce bool // everything announced has to be announced again
	results    map[netip.Addr]elect.Result
}

// sender finds out which node has sent a frame. *frameAuth is one.
type sender interface {
	know(nodes map[string]bool)
	sender(m wire.Message, self wire.MAC, aliases func(node string, mac wire.MAC) []wire.MAC) (string, verification)
}

// newAnnouncer returns one without auth, and whose ports cannot be opened.
func newAnnouncer(node string, membership Membership, cfg Config, log logr.Logger) *Announcer {
	c := newCluster(node, &announce.Desired{})
	a := &Announcer{
		log: log, membership: membership, metrics: cfg.Metrics, timing: claim.DefaultTiming(),
		cluster: &c, handover: newHandover(cfg.Handover, log), reports: reports{},
		contacts: contacts{lost: map[string]time.Time{}},
		liveness: liveness{membership: membership, log: log, enabled: membership.Probes()},
		heard:    make(chan heard, heardBacklog),
	}
	a.ports = newPorts(cfg.Metrics, a.reports, log)
	return a
}

// Apply implements announce.Announcer.
func (a *Announcer) Apply(now time.Time, desired *announce.Desired) {
	a.decisions.reannounce = a.contacts.track(now, a.cluster.desired.Nodes, desired.Nodes) || a.decisions.reannounce
	*a.cluster = newCluster(a.cluster.self, desired)
	a.auth.know(a.cluster.senders())
	a.decisions.applied, a.decisions.due = true, true
}

// Step implements announce.Announcer.
func (a *Announcer) Step(now time.Time) {
	a.receive(now)
	// Each of these is done, whatever the others say.
	again, over, late := a.ports.reopen(now), a.contacts.holdDownOver(now), a.housekeep(now)
	a.decisions.due = a.decisions.due || again || over || late
	if a.decisions.due && a.decisions.applied {
		a.decisions.due = false
		a.place(now)
	}
	a.queue.run(now, func(e *entry) {
		before, _ := e.machine.State()
		e.machine.Tick(now)
		a.after(now, e, before)
	})
	a.probe(now)
	for _, p := range a.ports.all {
		if p.filter.due(now) {
			a.listen(now, p)
		}
	}
}

// housekeep does what is done once a second, and reports whether placement is due.
func (a *Announcer) housekeep(now time.Time) (due bool) {
	if now.Sub(a.housekept) < time.Second {
		return false
	}
	a.housekept = now
	for _, p := range a.ports.all {
		a.ports.count(p)
		due = due || !p.conn.Bound()
		for _, e := range p.entries {
			due = due || e.succession.overdue(now)
		}
	}
	a.handover.expire(now)
	return due
}

// probe has the announcers on the links probed, if that is due.
func (a *Announcer) probe(now time.Time) {
	if now.Before(a.liveness.at) {
		return
	}
	late := make(map[*port]bool, len(a.ports.all))
	for _, p := range a.ports.all {
		late[p] = p.conn.Unread() // asked first: what is read meanwhile is received
	}
	a.receive(now)
	a.decisions.due = a.liveness.tick(now, a.cluster, a.ports.all, late) || a.decisions.due
}

// Next implements announce.Announcer.
func (a *Announcer) Next(now time.Time) time.Duration {
	if a.decisions.due && a.decisions.applied {
		return 0
	}
	wait := time.Second // what is done once a second, and sockets that failed
	if a.liveness.active(a.ports.all) {
		wait = min(wait, a.liveness.at.Sub(now))
	}
	if at, ok := a.queue.next(); ok {
		wait = min(wait, at.Sub(now))
	}
	return max(wait, 0)
}

// Receptions implements announce.Announcer.
func (a *Announcer) Receptions() map[int]elect.Reception { return a.liveness.receptions }

// Active implements announce.Announcer: how many (address, interface) this node
// answers for.
func (a *Announcer) Active() int {
	n := 0
	for _, p := range a.ports.all {
		for _, e := range p.entries {
			if e.machine.Answers() {
				n++
			}
		}
	}
	return n
}

// Close implements announce.Announcer.
func (a *Announcer) Close(now time.Time) {
	for _, p := range a.ports.all {
		a.ports.close(now, p)
	}
}

// Reports implements announce.Announcer.
func (a *Announcer) Reports(now time.Time) []announce.Report {
	return a.reports.take(now, a.cluster, a.ports.all)
}

// after records that a machine may have changed its state.
func (a *Announcer) after(now time.Time, e *entry, before claim.State) {
	a.queue.put(e)
	state, _ := e.machine.State()
	a.reports.enqueue(e.addr)
	if state == before {
		return
	}
	a.log.V(1).Info("Address changed state", "address", e.addr, "interface", e.port.name, "from", before.String(), "to", state.String())
	if before == claim.Backup && state == claim.Probing {
		a.recheck(now, e)
	}
}

// recheck has the other addresses looked at whose holder has fallen silent on
// one.
func (a *Announcer) recheck(now time.Time, silent *entry) {
	for _, e := range silent.port.entries {
		if e != silent && e.machine.Holder().MAC == silent.machine.Holder().MAC {
			e.machine.Recheck(now)
			a.queue.put(e)
		}
	}
}
