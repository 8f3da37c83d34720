// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"time"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// State is where a Machine stands.
type State uint8

// The states; see the package comment.
const (
	Idle State = iota
	Probing
	Backup
	Announcing
	Releasing
	Conflicting
)

// String names the state.
func (s State) String() string {
	return [...]string{"Idle", "Probing", "Backup", "Announcing", "Releasing", "Conflict"}[s]
}

// Role is what the election makes of this node for the address.
type Role uint8

const (
	// None: the address is no longer in use, or the interface is no longer one
	// to announce it on. Answering stops immediately.
	None Role = iota
	// Barred: this node may not announce the address.
	Barred
	// Standby: it may, but another node is elected.
	Standby
	// Reluctant: it may, but should leave the address to those that are preferred.
	// If it answers it goes on until one of them has taken over.
	Reluctant
	// Elected: it has to.
	Elected
)

// Want is what the rest of the agent asks of a Machine.
type Want struct {
	Role Role
	// Elected is the node that this agent's view elects; empty for none.
	Elected string
	// Preempt is how long this node, elected, leaves the address to another of
	// ours that announces it and may: 0 only for Timing's PreemptDelay, negative
	// until that one stops by itself.
	Preempt time.Duration
	// Hurry asks for the short probe: the address was announced by a node that
	// has stopped, and clients wait.
	Hurry bool
	// Slack is added to the time that an answer to a probe may take, for busy
	// cores.
	Slack time.Duration
	// SuppressGratuitous is to answer questions without announcing anything: the node
	// that clients use goes on forwarding though its agent is gone, and an announcement
	// would break their connections. When it ends the address is announced.
	SuppressGratuitous bool
	// ElectedAt, unless zero, is where a node that still announces the address asks
	// Elected at intervals: it may have taken over unheard.
	ElectedAt nodeinfo.MAC
	// Refresh and LostRecheck, unless 0, are used in place of Timing's: the first
	// is short while a peer that might announce too is out of contact, and what is
	// done more often than Timing's Refresh is a question; the second is long while
	// very many addresses are rechecked.
	Refresh, LostRecheck time.Duration
}

// Peer is the sender of a frame.
type Peer struct {
	// Name of the node, empty for a conflicting host.
	Name string
	MAC  nodeinfo.MAC
	// Alive and Eligible are this agent's view: membership holds the peer alive,
	// and the election would let it announce the address.
	Alive, Eligible bool
	// Outranks reports that the peer comes before this node (elect.Outranks).
	Outranks bool
	// Suspect: it does not answer, by membership or on this link. Until it does this
	// node has the last word.
	Suspect bool
	// Hint: the frame was not sent in answer to a question of this node's. Its
	// sender is not verified then: a reason for a question, and for nothing else.
	Hint bool
	// Host is, of a conflicting host, the node whose interface HostInterface has its MAC;
	// empty for none. That node's agent did not send the frame, or it would be no
	// conflicting host's.
	Host, HostInterface string
	// HostDead: membership holds that node's agent dead. Cached: besides, its kernel
	// is silent or it announced the address before, so that a switch that remembers
	// it has answered in its place.
	HostDead, Cached bool
}

// Kind is what a frame is to a Machine.
type Kind uint8

const (
	// Probe: the sender asks who has the address in order to use it.
	Probe Kind = iota + 1
	// Advertisement: the sender says, or shows by using it, that it has the address.
	Advertisement
)

// Port sends frames about the machine's address. Errors are the port's affair:
// every frame is repeated until an answer or time-out decides.
type Port interface {
	// Probe asks who has the address; a zero to asks everyone.
	Probe(to nodeinfo.MAC)
	// Announce tells everyone that this node has it.
	Announce()
	// Answer turns answering on and off.
	Answer(on bool)
}

// Timing are the intervals of a Machine.
type Timing struct {
	// Probe is how an address is probed that nobody announced lately, Hurry how
	// one is that clients wait for.
	Probe, Hurry ProbeTiming
	// Repeats are when an announcement is sent again after the first. One of
	// them is later than a second, the time for which Linux neighbours do not
	// take another change (locktime).
	Repeats []time.Duration
	// Refresh is the interval of announcements after the last of Repeats.
	Refresh time.Duration
	// LostRecheck is how often the holder of a Backup address is asked whether it
	// still has it. While membership considers it alive, and so would report its
	// death, the interval grows up to Recheck.
	Recheck, LostRecheck time.Duration
	// Release is how long a node that may no longer announce goes on answering
	// if it hears no successor.
	Release time.Duration
	// PreemptDelay is how long this node, elected, leaves the address to one of ours
	// that is alive and has it: that one may not know yet that it has to go, and
	// would defend the address.
	PreemptDelay time.Duration
	// Backoff is how long a node that has yielded to a holder waits before it
	// tries again; doubled each time up to MaxBackoff.
	Backoff, MaxBackoff time.Duration
	// Defend is RFC 5227's DEFEND_INTERVAL, Retry the interval of new probes
	// while a conflicting host has the address.
	Defend, Retry time.Duration
}

// ProbeTiming is one way to probe: Count probes every Interval, and Wait after
// the last of them.
type ProbeTiming struct {
	Count          int
	Interval, Wait time.Duration
}

// DefaultTiming is far quicker than RFC 5227's seconds, which were meant for
// hosts that no client waits for; the watch goes on after the first announcement.
func DefaultTiming() Timing {
	return Timing{
		Probe:   ProbeTiming{Count: 3, Interval: 100 * time.Millisecond, Wait: 150 * time.Millisecond},
		Hurry:   ProbeTiming{Count: 2, Interval: 15 * time.Millisecond, Wait: 25 * time.Millisecond},
		Repeats: []time.Duration{100 * time.Millisecond, 400 * time.Millisecond, 1200 * time.Millisecond, 2500 * time.Millisecond},
		Refresh: time.Minute,
		Recheck: 5 * time.Second,

		LostRecheck:  200 * time.Millisecond,
		Release:      2 * time.Second,
		PreemptDelay: 100 * time.Millisecond,
		Backoff:      500 * time.Millisecond,
		MaxBackoff:   30 * time.Second,
		Defend:       10 * time.Second,
		Retry:        10 * time.Second,
	}
}

const (
	// reclaimInterval is the least interval of announcements in answer to others,
	// and hintInterval that of questions in answer to hints, however many are
	// received.
	reclaimInterval = 100 * time.Millisecond
	hintInterval    = 10 * time.Millisecond
	// maxStale is how long an address is left to a node whose agent is dead, while
	// answers contain that node's hardware address.
	maxStale = 3 * time.Second
	// maxDeferred is how many probes in a row a node that probes itself gives way to.
	maxDeferred = 3
)

// crossing is how long after its first announcement a node assumes that announcements
// of the former holder have crossed it on the wire.
const crossing = 50 * time.Millisecond

// Conflict is a conflicting host that has the address.
type Conflict struct {
	MAC nodeinfo.MAC
	// Node and Interface are set if the MAC is that of a node: the address is bound
	// there, or in one of its Pods, or forged.
	Node, Interface string
	// Last is when it was last heard.
	Last time.Time
}

// Machine is the state of one address on one link. It is not safe for
// concurrent use.
type Machine struct {
	timing Timing
	port   Port

	state    State
	want     Want
	since    time.Time // of state
	deadline time.Time // of the next Tick; zero for none

	sent          int       // probes, or repeats of the announcement
	repeatsFrom   time.Time // the first of the announcements that are repeated
	lastAnnounced time.Time // the last of them
	probing       ProbeTiming
	restarts      int  // how often probing was begun again for a conflicting host's probe
	crossed       bool // one announcement that crossed ours was answered
	defended      time.Time
	looked        time.Time // when the link was last asked for a conflicting host

	holder      Peer      // Backup: the node that has it
	backupSince time.Time // Backup: without a break
	answered    bool      // Backup: since the last question
	retry       time.Time // Backup: when to announce in any case; zero for never
	backoff     time.Duration

	reclaimed time.Time // when another's announcement was last answered by one
	owed      time.Time // Announcing: when another has to be; zero for none
	again     time.Time // answering: when the contender is asked once more; zero for none
	asked     time.Time // when a hint was last answered by a question
	deferred  int       // to how many hints of probing peers this node has given way

	conflict     Conflict
	suspect      Peer         // Probing: a node whose hardware address was in an answer that its agent did not send
	stale        time.Time    // since when answers have that of a node whose agent is dead; zero for none
	next         time.Time    // Announcing: the next announcement; Releasing: the end
	electedAsked time.Time    // Announcing: when the node elected instead was last asked
	contender    nodeinfo.MAC // one of ours that may have the address too; zero for none
}

// Contender is one of ours that has, or had until just now, the address that this node
// announces. It has to hear of it where announcements do not come through.
func (m *Machine) Contender() nodeinfo.MAC { return m.contender }

// New returns an idle machine.
func New(timing Timing, port Port) *Machine { return &Machine{timing: timing, port: port} }

// State returns the present state and since when.
func (m *Machine) State() (State, time.Time) { return m.state, m.since }

// Role returns that of the last Set; None before.
func (m *Machine) Role() Role { return m.want.Role }

// Answers reports whether this node answers for the address.
func (m *Machine) Answers() bool { return m.state == Announcing || m.state == Releasing }

// Holder is the node of ours that has a Backup address, or had it last since the
// machine was idle; the zero Peer for none.
func (m *Machine) Holder() Peer { return m.holder }

// Conflict returns the conflicting host that was heard within the last minute or since
// the last silent probe; the zero value for none.
func (m *Machine) Conflict(now time.Time) Conflict {
	if m.state != Conflicting && now.Sub(m.conflict.Last) > time.Minute {
		return Conflict{}
	}
	return m.conflict
}

// Deadline is when Tick has to be called next; zero for not at all.
func (m *Machine) Deadline() time.Time { return m.deadline }

// Set replaces what is wanted.
func (m *Machine) Set(now time.Time, want Want) {
	old := m.want
	m.want = want
	switch want.Role {
	case None:
		m.stop(now)
	case Barred, Reluctant:
		m.bar(now)
	case Standby:
		switch m.state {
		case Probing, Backup, Conflicting:
			m.enter(now, Idle)
		case Releasing:
			m.resume(now)
		}
	case Elected:
		m.elect(now)
	}
	switch {
	case m.state != Announcing:
	case old.SuppressGratuitous && !want.SuppressGratuitous:
		m.port.Announce()
		m.sent, m.repeatsFrom = 0, now
		m.scheduleAnnouncement(now)
	case want.Refresh != old.Refresh:
		m.scheduleAnnouncement(now)
	case want.ElectedAt != old.ElectedAt:
		m.electedAsked = now
		m.attend()
	}
}

func (m *Machine) bar(now time.Time) {
	switch m.state {
	case Probing, Backup, Conflicting:
		m.enter(now, Idle)
	case Announcing:
		m.enter(now, Releasing)
		m.next = now.Add(m.timing.Release)
		m.attend()
	}
}

func (m *Machine) elect(now time.Time) {
	switch m.state {
	case Idle:
		m.probe(now)
	case Releasing:
		m.resume(now)
	case Probing:
		if m.want.Hurry && m.probing != m.timing.Hurry {
			m.probe(now)
		}
	case Backup:
		m.Recheck(now) // the holder may be gone, or no longer eligible
	}
}

// resume cancels a release that no node has taken up.
func (m *Machine) resume(now time.Time) {
	m.enter(now, Announcing)
	m.repeatsFrom = m.since
	m.scheduleAnnouncement(now)
}

// Recheck asks the holder of a Backup address now rather than later, because it
// has fallen silent elsewhere or because the view of it has changed.
func (m *Machine) Recheck(now time.Time) {
	if m.state == Backup && m.answered {
		m.ask(now)
	}
}

// Reannounce announces again, because a peer that had been out of contact was heard.
func (m *Machine) Reannounce() {
	if m.state == Announcing && !m.want.SuppressGratuitous {
		m.port.Announce()
	}
}

// Lost reports that the interface is gone or down: nothing can be sent, and
// nobody hears.
func (m *Machine) Lost(now time.Time) { m.stop(now) }

func (m *Machine) stop(now time.Time) {
	if m.Answers() {
		m.port.Answer(false)
	}
	m.conflict = Conflict{}
	m.enter(now, Idle)
}

// enter changes the state and forgets the deadline. Answering must match
// already.
func (m *Machine) enter(now time.Time, s State) {
	if m.state != s {
		m.state, m.since = s, now
	}
	m.deadline, m.owed, m.again = time.Time{}, time.Time{}, time.Time{}
	if s == Idle {
		m.contender, m.stale = nodeinfo.MAC{}, time.Time{}
		m.deferred = 0
		m.holder = Peer{}
	}
}

// probe begins to probe.
func (m *Machine) probe(now time.Time) {
	m.enter(now, Probing)
	m.probing = m.timing.Probe
	if m.want.Hurry {
		m.probing = m.timing.Hurry
	}
	m.sent, m.restarts, m.suspect = 0, 0, Peer{}
	m.sendProbe(now)
}

func (m *Machine) sendProbe(now time.Time) {
	m.port.Probe(nodeinfo.MAC{})
	m.sent++
	m.deadline = now.Add(m.probing.Interval)
	if m.sent == m.probing.Count {
		m.deadline = now.Add(m.probing.Wait + m.want.Slack)
	}
}

// announce takes the address.
func (m *Machine) announce(now time.Time) {
	m.enter(now, Announcing)
	m.deferred = 0
	m.port.Answer(true)
	if !m.want.SuppressGratuitous {
		m.port.Announce()
	}
	m.sent, m.crossed, m.looked, m.repeatsFrom, m.lastAnnounced = 0, false, now, now, now
	m.scheduleAnnouncement(now)
}

func (m *Machine) scheduleAnnouncement(now time.Time) {
	refresh := m.want.Refresh
	if refresh == 0 {
		refresh = m.timing.Refresh
	}
	m.deadline = now.Add(refresh)
	if m.sent < len(m.timing.Repeats) {
		if next := m.repeatsFrom.Add(m.timing.Repeats[m.sent]); next.Before(m.deadline) {
			m.deadline = next
		}
	}
	m.next = m.deadline
	m.attend()
}

// attend sets the deadline of a node that answers to what is due first: next, the
// announcement owed to another, the second question to a contender, or, at intervals,
// one to the elected node, if that is another.
func (m *Machine) attend() {
	due := []time.Time{m.owed, m.again}
	if m.state == Announcing && m.want.Role != Elected && !m.want.ElectedAt.IsZero() {
		due = append(due, m.electedAsked.Add(m.timing.Recheck))
	}
	m.deadline = m.next
	for _, at := range due {
		if !at.IsZero() && at.Before(m.deadline) {
			m.deadline = at
		}
	}
}

// Tick does what is due at now.
func (m *Machine) Tick(now time.Time) {
	if m.deadline.IsZero() || now.Before(m.deadline) {
		return
	}
	if !m.again.IsZero() && !now.Before(m.again) {
		m.again = time.Time{}
		if !m.contender.IsZero() {
			m.port.Probe(m.contender)
		}
		m.attend()
		return
	}
	switch m.state {
	case Probing:
		if m.sent < m.probing.Count {
			m.sendProbe(now)
			return
		}
		if m.suspect.Host != "" && !m.overdue(now) {
			m.conflictWith(now, m.suspect)
			return
		}
		m.conflict, m.stale = Conflict{}, time.Time{}
		m.announce(now)
	case Announcing:
		if !m.owed.IsZero() && !now.Before(m.owed) {
			m.owed, m.reclaimed = time.Time{}, now
			m.port.Announce()
			m.attend()
			return
		}
		if now.Before(m.next) {
			m.electedAsked = now
			m.port.Probe(m.want.ElectedAt)
			m.attend()
			return
		}
		repeats := m.sent
		for m.sent < len(m.timing.Repeats) && !now.Before(m.repeatsFrom.Add(m.timing.Repeats[m.sent])) {
			m.sent++
		}
		if m.sent == len(m.timing.Repeats) {
			m.backoff, m.contender = 0, nodeinfo.MAC{} // no node objected
			m.look(now)
		}
		switch {
		case m.want.SuppressGratuitous:
		case m.sent > repeats, now.Sub(m.lastAnnounced) >= m.timing.Refresh*3/4:
			m.port.Announce()
			m.lastAnnounced = now
		default:
			// A peer out of contact may have the address, too. It answers, and one
			// of the two stops. An announcement would be heard as well, but by clients, too,
			// and it may be this node that does not hear.
			m.port.Probe(nodeinfo.MAC{})
		}
		m.scheduleAnnouncement(now)
	case Backup:
		m.tickBackup(now)
	case Releasing:
		if m.want.Role == Reluctant {
			if !m.want.ElectedAt.IsZero() {
				m.port.Probe(m.want.ElectedAt)
			}
			m.next = now.Add(m.timing.Release) // no successor yet: better than no node
			m.attend()
			return
		}
		m.stop(now)
	case Conflicting:
		m.probe(now)
	}
}

// look probes for a conflicting host once in a Refresh: one that has taken the address
// without asking does not announce it.
func (m *Machine) look(now time.Time) {
	if now.Sub(m.looked) >= m.timing.Refresh/2 {
		m.looked = now
		m.port.Probe(nodeinfo.MAC{})
	}
}

func (m *Machine) tickBackup(now time.Time) {
	switch {
	case !m.answered:
		m.want.Hurry = true // silence: clients wait
		m.probe(now)
	case !m.retry.IsZero() && !now.Before(m.retry):
		m.announce(now)
	default:
		m.ask(now)
	}
}

// ask asks the holder of a Backup address whether it still has it.
func (m *Machine) ask(now time.Time) {
	m.answered = false
	m.port.Probe(m.holder.MAC)
	m.deadline = now.Add(m.timing.Hurry.Wait + m.timing.Hurry.Interval + m.want.Slack)
}
