// SPDX-License-Identifier: Apache-2.0

package members

import (
	"net/netip"
	"time"
)

// opinionAge is how long another peer's "no answer" counts.
const opinionAge = 3 * time.Second

// directAge is how long a direct message keeps a peer alive that gossip has lost
// and that is not watched.
const directAge = time.Second

// peer is the record of another node.
type peer struct {
	name   string
	listed netip.AddrPort // from the API; zero if it is not there
	joined netip.AddrPort // from gossip; zero if it was never there

	gossip  bool // memberlist holds it alive
	joining bool // an attempt is under way

	facts   []byte
	version uint64 // of facts

	alive       bool
	since       time.Time // of alive
	unreachable bool      // as Member has them
	hostAnswers bool
	nodeSilent  bool

	heard   time.Time     // the last proof of life
	silence time.Duration // since then, while this process ran on time
	worst   time.Duration // round trip of late
	late    time.Duration // how late its own timers are, as it says
	asked   time.Time     // the last ping
	relayed time.Time     // when relays were last asked
	pings   [32]sentPing
	nos     map[string]time.Time // peers that got no answer from it

	echoAsked time.Time     // the last echo request to its kernel
	echoed    time.Time     // the last answer
	waiting   bool          // a request of an earlier tick has no answer
	mute      time.Duration // for how long none has, while this process ran on time

	met      bool      // it has been alive
	knocked  time.Time // the last knock
	knocking bool
	noKernel bool // the last knock was not answered by anything
	kernel   bool // the last knock in this silence was answered by its kernel
}

// sentPing remembers when a ping left.
type sentPing struct {
	number uint64
	at     time.Time
}

// addr is where to send to.
func (p *peer) addr() netip.AddrPort {
	if p.joined.IsValid() {
		return p.joined
	}
	return p.listed
}

// secondOpinion tells whether another peer got no answer either, of late.
func (p *peer) secondOpinion(now time.Time) bool {
	for _, at := range p.nos {
		if now.Sub(at) < opinionAge {
			return true
		}
	}
	return false
}

// sign takes a proof of life.
func (p *peer) sign(now time.Time) {
	if p.silence > 0 {
		p.relayed = time.Time{} // the next silence is another
	}
	p.heard, p.silence, p.noKernel, p.kernel, p.met = now, 0, false, false, true
	p.waiting, p.mute = false, 0
	clear(p.nos)
}

// roundTrip takes the answer to a ping into account. The worst fades by a
// hundredth with each answer.
func (p *peer) roundTrip(number uint64, now time.Time) {
	s := p.pings[number%uint64(len(p.pings))]
	if s.number != number {
		return
	}
	p.worst -= p.worst / 100
	p.worst = max(p.worst, now.Sub(s.at))
}

// lateWeight is by how much patience grows with the lateness of timers: where they
// are late by some milliseconds now, an answer may soon be late by some tens.
// Lateness below calmLateness is no sign of load.
const (
	lateWeight   = 6
	calmLateness = 10 * time.Millisecond
)

// echoMemory is how old an answer to an echo request may be, when a peer is last
// heard, to show that its kernel answers them at all: some firewalls let none
// through. The kernel of a peer that is heard is asked every echoInterval.
const (
	echoMemory   = 5 * time.Second
	echoInterval = time.Second
)

// unanswered tells whether a ping has had the time of another to be answered.
func (p *peer) unanswered(t Timing) bool { return p.silence > t.ProbeInterval*3/2 }

// kernelSilent tells whether not only the agent is silent but the kernel as well,
// which had answered echo requests before. Busy cores do not explain that.
func (p *peer) kernelSilent(t Timing) bool {
	// The first request leaves with the second ping that is not answered.
	return p.heard.Sub(p.echoed) < echoMemory && p.mute >= t.SilenceLimit-2*t.ProbeInterval
}

// limit is the silence after which p is dead. While p's kernel answers, or is not
// known to, an agent may just wait for its turn; so the limit grows with p's round
// trips, and with how late timers are on busy cores, p's as well as this process's
// own (late).
func (p *peer) limit(t Timing, late time.Duration) time.Duration {
	if p.kernelSilent(t) {
		return t.SilenceLimit
	}
	least := t.SilenceLimit
	if p.echoed.After(p.heard) {
		least = t.AgentSilenceLimit // it forwards still: no hurry
	}
	slow := max(2*(p.worst-calmLateness), lateWeight*(max(p.late, late)-calmLateness), 0)
	return min(least+slow, t.MaxSilenceLimit)
}

// isAlive decides. The lock is held.
func (m *Members) isAlive(p *peer, now time.Time) bool {
	t := m.cfg.Timing
	if t.ProbeInterval == 0 {
		return p.gossip
	}
	if m.watch[p.name] {
		// The limit varies: who was found dead has to be heard again.
		again := p.alive || !p.heard.IsZero() && !p.heard.Before(p.since)
		return again && p.silence < p.limit(t, m.late)
	}
	return p.gossip || now.Sub(p.heard) < directAge
}

// judge brings what View tells of p up to date, and tells whether it has changed.
// The lock is held.
func (m *Members) judge(p *peer, now time.Time) (changed bool) {
	alive := m.isAlive(p, now)
	echoes := p.echoed.After(p.heard) && !p.kernelSilent(m.cfg.Timing)
	unreachable := !alive && p.met && p.noKernel && !echoes && p.secondOpinion(now)
	hostAnswers := !alive && (p.kernel || echoes)
	if alive != p.alive {
		p.alive, p.since, changed = alive, now, true
	}
	nodeSilent := !alive && p.kernelSilent(m.cfg.Timing)
	changed = changed || unreachable != p.unreachable || hostAnswers != p.hostAnswers || nodeSilent != p.nodeSilent
	p.unreachable, p.hostAnswers, p.nodeSilent = unreachable, hostAnswers, nodeSilent
	return changed
}
