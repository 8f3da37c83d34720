// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"time"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// Hear takes an Advertisement or Probe of another host for the address. The socket
// answers Questions; a Machine does not get them.
func (m *Machine) Hear(now time.Time, kind Kind, from Peer) {
	if from.Name == "" {
		m.hearConflicting(now, kind, from)
		return
	}
	switch m.state {
	case Probing:
		m.hearProbing(now, kind, from)
	case Backup:
		switch {
		case kind != Advertisement:
			if from.Name == m.holder.Name {
				m.Recheck(now) // a node that probes does not have the address: its agent was restarted
			}
		case from.Hint:
			m.inquire(now, from)
		default:
			m.hearBackup(now, from)
		}
	case Announcing, Releasing:
		if kind == Advertisement {
			m.hearContender(now, from)
		}
	}
}

// inquire asks the sender of a hint. The answer decides.
func (m *Machine) inquire(now time.Time, from Peer) {
	if now.Sub(m.asked) >= hintInterval {
		m.asked = now
		m.port.Probe(from.MAC)
	}
}

// conflict is what a conflicting host makes.
func (p Peer) conflict(now time.Time) Conflict {
	return Conflict{MAC: p.MAC, Node: p.Host, Interface: p.HostInterface, Last: now}
}

func (m *Machine) hearConflicting(now time.Time, kind Kind, from Peer) {
	switch m.state {
	case Probing:
		switch {
		case kind == Probe:
			m.probeAgain(now)
		case from.Cached:
		case from.Host != "":
			m.suspectHost(now, from)
		default:
			m.stale = time.Time{}
			m.conflictWith(now, from)
		}
	case Backup:
		if kind == Advertisement && !from.Cached && from.Host != m.holder.Name {
			m.conflict = from.conflict(now) // the holder defends it
		}
	case Conflicting:
		if kind == Advertisement && !from.Cached {
			m.conflict = from.conflict(now)
		}
	case Announcing, Releasing:
		if kind != Advertisement {
			return // it gets an answer to its probe
		}
		if (from.Cached || from.Host != "" && from.Host == m.holder.Name) && now.Sub(m.since) < maxStale {
			return // a switch that has not learned yet that the address is here
		}
		m.conflict = from.conflict(now)
		if m.state == Announcing && now.Sub(m.defended) >= m.timing.Defend {
			m.defended = now
			m.port.Announce()
		}
	}
}

// suspectHost takes an answer with a node's hardware address that its agent has
// not sent. The address may be bound there; or a switch that suppresses ARP and
// NDP has answered, which says what it has seen, not what is. So that node is asked
// itself: its agent's answer decides, and without one it is a conflict.
func (m *Machine) suspectHost(now time.Time, from Peer) {
	if from.HostDead && m.stale.IsZero() {
		m.stale = now
	} else if !from.HostDead {
		m.stale = time.Time{}
	}
	if m.suspect.MAC != from.MAC {
		m.suspect = from
		if m.sent == m.probing.Count {
			m.deadline = now.Add(m.probing.Wait + m.want.Slack)
		}
	}
	m.inquire(now, from)
}

// overdue reports whether an address has been left for long enough to a node whose
// agent is dead.
func (m *Machine) overdue(now time.Time) bool {
	return !m.stale.IsZero() && now.Sub(m.stale) >= maxStale
}

// maxProbeAgain bounds how often a conflicting host's probes make a node probe again.
const maxProbeAgain = 2

// probeAgain probes again immediately, because a conflicting host probes too. RFC 5227
// section 2.1.1 counts its probe as a conflict; but it says only that the conflicting host
// does not use the address yet, and many that probe never will: switches that
// track hosts, arping -D, a host whose address clients wait for. If it does take
// the address its announcement is heard, before this node's or as an answer to it; if this
// node is the first, it answers the next probe.
func (m *Machine) probeAgain(now time.Time) {
	if m.restarts < maxProbeAgain {
		m.restarts++
		m.sent = 0
		m.sendProbe(now)
	}
}

func (m *Machine) conflictWith(now time.Time, from Peer) {
	m.enter(now, Conflicting)
	m.conflict = from.conflict(now)
	m.deadline = now.Add(m.timing.Retry)
	if from.HostDead && !m.stale.IsZero() {
		m.deadline = m.stale.Add(maxStale)
	}
}

func (m *Machine) hearProbing(now time.Time, kind Kind, from Peer) {
	if kind == Probe {
		// Two of ours probe for it at the same time.
		if from.Outranks && m.deferred < maxDeferred {
			m.deferred++
			m.hold(now, from)
		}
		return
	}
	if from.Hint {
		// Its answer is waited for, as that to the last probe is.
		if m.sent == m.probing.Count && m.asked.Before(m.since) {
			m.deadline = now.Add(m.probing.Wait + m.want.Slack)
		}
		m.inquire(now, from)
		return
	}
	m.backoff = 0
	m.hearBackup(now, from)
}

// due is when to take an address from a holder of ours; zero for never while that one
// answers. A holder that may not know yet that it has to go is given
// PreemptDelay.
func (m *Machine) due(now time.Time, holder Peer) time.Time {
	wait := m.backoff
	switch {
	case !holder.Alive && holder.Outranks:
		// Membership has lost it but the link has not. It would not yield.
		return time.Time{}
	case !holder.Alive:
	case !holder.Eligible:
		wait += m.timing.PreemptDelay
	case m.want.Preempt < 0:
		return time.Time{}
	default:
		return m.backupSince.Add(wait + max(m.want.Preempt, m.timing.PreemptDelay))
	}
	if at := now.Add(wait); m.retry.IsZero() || at.Before(m.retry) {
		return at
	}
	return m.retry
}

// hold leaves the address to a holder for now, and watches it.
func (m *Machine) hold(now time.Time, holder Peer) {
	if m.state != Backup {
		m.backupSince, m.retry = now, time.Time{}
		if m.state == Probing && m.suspect.Host != "" && m.suspect.Host != holder.Name {
			m.conflict = m.suspect.conflict(now) // two have it
		}
	}
	m.enter(now, Backup)
	m.holder, m.answered = holder, true
	recheck := m.timing.LostRecheck
	if m.want.LostRecheck != 0 {
		recheck = m.want.LostRecheck
	}
	if holder.Alive {
		// Rarely in the end; but two announcements that crossed may have made both stop.
		recheck = min(max(recheck, now.Sub(m.backupSince)), m.timing.Recheck)
	}
	m.deadline = now.Add(recheck)
}

// setRetry makes a Backup machine announce the address at t in any case.
func (m *Machine) setRetry(t time.Time) {
	m.retry = t
	if t.Before(m.deadline) {
		m.deadline = t
	}
}

// hearBackup takes the answer of the holder, or an announcement of another of ours. Since
// the last one the holder may have become ineligible, membership may have found
// or lost it, and the policy may have been edited.
func (m *Machine) hearBackup(now time.Time, from Peer) {
	if from.Alive && !m.holder.Alive {
		m.backoff = 0 // what made the two fight is over
	}
	m.hold(now, from)
	if m.contender = from.MAC; !from.Alive {
		m.contender = nodeinfo.MAC{}
	}
	switch at := m.due(now, from); {
	case at.IsZero():
		m.retry = at
	case at.After(now):
		m.setRetry(at)
	default:
		m.announce(now)
	}
}

// hearContender takes the announcement of another of ours while this node answers.
func (m *Machine) hearContender(now time.Time, from Peer) {
	m.contender = from.MAC
	goes := from.Name == m.want.Elected || m.state == Releasing || m.want.SuppressGratuitous
	switch {
	case goes && from.Hint:
		m.inquireContender(now, from)
	case from.Name == m.want.Elected, m.state == Releasing:
		m.port.Answer(false)
		m.enter(now, Idle)
	case m.want.SuppressGratuitous:
		m.yield(now, from) // clients have never come here
	case !from.Outranks:
		m.reclaim(now) // the contender stops and clients come back
	case now.Sub(m.since) < crossing:
		// It may have been sent before our first announcement arrived there. If the
		// contender insists, the next one will make it announce again.
		if !m.crossed {
			m.crossed = true
			m.port.Announce()
		}
	case from.Hint:
		m.inquireContender(now, from)
		if from.Suspect {
			m.reclaim(now) // a node that announces and does not hear would attract the clients
		}
	default:
		m.yield(now, from)
	}
}

// inquireContender asks a node that this one would yield to, and once more if that
// changes nothing: question or answer may be lost.
func (m *Machine) inquireContender(now time.Time, from Peer) {
	m.inquire(now, from)
	m.again = now.Add(m.timing.LostRecheck)
	m.attend()
}

// reclaim announces in answer to an announcement, immediately unless it has just done so,
// and once more afterwards: the last word, which clients go by, is this node's, also
// for hosts that the other informs one by one after its announcement.
func (m *Machine) reclaim(now time.Time) {
	if now.Sub(m.reclaimed) >= reclaimInterval {
		m.reclaimed = now
		m.port.Announce()
	}
	m.owed = m.reclaimed.Add(reclaimInterval)
	m.attend()
}

// yield stops answering because of a holder that outranks this node.
func (m *Machine) yield(now time.Time, from Peer) {
	m.port.Answer(false)
	if m.want.Role != Elected {
		m.enter(now, Idle)
		return
	}
	m.backoff = min(max(2*m.backoff, m.timing.Backoff), m.timing.MaxBackoff)
	m.hold(now, from)
	if from.Alive {
		m.setRetry(now.Add(m.backoff))
	}
}
