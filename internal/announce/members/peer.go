// SPDX-License-Identifier: Apache-2.0

package members

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// opinionAge is how long another peer's "no answer" counts.
const opinionAge = 3 * time.Second

// peer is the record of another node.
type peer struct {
	name   string
	id     nodeinfo.ID
	listed netip.AddrPort // from the API; zero if it is not there, or no family is shared
	all    []netip.Addr   // its addresses, from the API
	gone   bool           // the API does not list it
	apart  bool           // it is there, but no family is shared
	public []byte         // its key, from the API; empty if it has not published one
	keys   sealKeys

	gossip  bool // memberlist holds it alive
	joining bool // an attempt is under way

	secure  bool      // it has answered in the present format, and is not heard in the former one while it lives
	tried   time.Time // the last ping in the present format, while it is not
	boot    uint64    // of its process that has answered last
	window  window    // of that one's numbers
	stamp   uint32    // its clock on the link, at stamped
	stamped time.Time

	info     []byte
	version  uint64 // of info
	latest   uint64 // version of them that it says is the latest
	puzzle   puzzle
	has      uint64    // version of this node's Info that it has
	pushed   time.Time // when they were last sent to it
	answered time.Time // when a process of it that is not known yet was last answered

	suspected time.Time // since when it is probed though it is not watched; zero for not

	alive bool
	since time.Time // of alive
	state State     // Alive if and only if alive is true

	heard   time.Time     // the last proof of life
	silence time.Duration // since then, while this process ran on time
	worst   time.Duration // round trip of late
	late    time.Duration // how late its own timers are, as it says
	asked   time.Time     // the last ping
	relayed time.Time     // when relays were last asked
	pings   [32]sentPing
	slot    int                       // of the next
	relays  map[nodeinfo.ID]time.Time // by the node that it had asked, when
	nos     map[string]time.Time      // peers that got no answer from it

	echoAsked time.Time     // the last echo request to its kernel
	echoed    time.Time     // the last answer
	waiting   bool          // a request of an earlier tick has no answer
	mute      time.Duration // for how long none has, while this process ran on time

	wasAlive   bool      // it has been alive
	tcpProbed  time.Time // the last TCP probe
	tcpProbing bool
	noKernel   bool // the last TCP probe was not answered by anything
	kernel     bool // the last TCP probe in this silence was answered by its kernel
}

// sentPing remembers when a ping left.
type sentPing struct {
	number uint64
	at     time.Time
}

// addr is where to send to.
func (p *peer) addr() netip.AddrPort { return p.listed }

// maxAckAge is how old a ping may be whose answer shows that the peer is alive.
const maxAckAge = 2 * time.Second

// sending returns the number of a ping that is about to leave: it cannot be guessed.
func (p *peer) sending(now time.Time) uint64 {
	n := uint64(len(p.pings))
	number := rand.Uint64()/n*n + uint64(p.slot)
	p.pings[p.slot] = sentPing{number, now}
	p.slot = (p.slot + 1) % len(p.pings)
	return number
}

// isAnswer reports whether number is that of a ping that has just left. Each is
// answered once.
func (p *peer) isAnswer(number uint64, now time.Time) (sent time.Time, ok bool) {
	s := &p.pings[number%uint64(len(p.pings))]
	if number == 0 || s.number != number || s.at.IsZero() || now.Sub(s.at) > maxAckAge {
		return time.Time{}, false
	}
	sent = s.at
	*s = sentPing{}
	return sent, true
}

// probed reports whether every silence of p counts.
func (m *Members) probed(p *peer) bool { return m.watch[p.name] || !p.suspected.IsZero() }

// watches reports whether p may have another node asked on its behalf: each once in
// half a relayInterval.
func (p *peer) watches(other nodeinfo.ID, now time.Time) bool {
	if now.Sub(p.relays[other]) < relayInterval/2 {
		return false
	}
	if len(p.relays) > 64 || p.relays == nil {
		p.relays = map[nodeinfo.ID]time.Time{}
	}
	p.relays[other] = now
	return true
}

// secondOpinion reports whether another peer got no answer either, of late.
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
	p.heard, p.silence, p.noKernel, p.kernel, p.wasAlive = now, 0, false, false, true
	p.waiting, p.mute, p.suspected = false, 0, time.Time{}
	clear(p.nos)
}

// roundTrip takes the answer to a ping into account. The worst fades by a
// hundredth with each answer.
func (p *peer) roundTrip(took time.Duration) {
	p.worst -= p.worst / 100
	p.worst = max(p.worst, took)
}

// lateWeight is by how much patience grows with the lateness of timers: where they
// are late by some milliseconds now, an answer may soon be late by some tens.
// Lateness below idleLateness is no sign of load.
const (
	lateWeight   = 6
	idleLateness = 10 * time.Millisecond
)

// echoMemory is how old an answer to an echo request may be, when a peer is last
// heard, to show that its kernel answers them at all: some firewalls let none
// through. The kernel of a peer that is heard is asked every echoInterval.
const (
	echoMemory   = 5 * time.Second
	echoInterval = time.Second
)

// unanswered reports whether a ping has had the time of another to be answered.
func (p *peer) unanswered(t Timing) bool { return p.silence > t.ProbeInterval*3/2 }

// kernelSilent reports whether not only the agent is silent but the kernel as well,
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
	slow := max(2*(p.worst-idleLateness), lateWeight*(max(p.late, late)-idleLateness), 0)
	return min(least+slow, t.MaxSilenceLimit)
}

// isAlive decides. The lock is held.
func (m *Members) isAlive(p *peer, now time.Time) bool {
	t := m.cfg.Timing
	if t.ProbeInterval == 0 {
		return p.gossip
	}
	// The limit varies: a peer that was found dead has to be heard again.
	again := p.alive || !p.heard.IsZero() && !p.heard.Before(p.since)
	return again && (!m.probed(p) || p.silence < p.limit(t, m.late))
}

// updateState brings what View returns of p up to date, and reports whether it has
// changed. The lock is held.
func (m *Members) updateState(p *peer, now time.Time) (changed bool) {
	alive := m.isAlive(p, now)
	silent := p.kernelSilent(m.cfg.Timing)
	echoes := p.echoed.After(p.heard) && !silent
	if alive != p.alive {
		p.alive, p.since = alive, now
		if !alive {
			m.unlessBound(p) // what comes back may be of a former version
		}
	}
	old := p.state
	switch {
	case alive:
		p.state = Alive
	case p.wasAlive && p.noKernel && !echoes && p.secondOpinion(now):
		p.state = Unreachable
	case silent:
		p.state = HostSilent
	case p.kernel || echoes:
		p.state = HostAnswers
	default:
		p.state = AgentSilent
	}
	return p.state != old
}
