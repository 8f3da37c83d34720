// SPDX-License-Identifier: Apache-2.0

package members

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"
)

// relays is how many peers are asked for a second opinion, relayInterval how
// often at most.
const (
	relays        = 3
	relayInterval = time.Second
)

// probeLoop pings the watched peers every ProbeInterval, and those that are not
// alive every LostInterval.
func (m *Members) probeLoop(ctx context.Context) {
	if e, err := openEchoer(m.cfg.Bind.Addr()); err != nil {
		logr.FromContextOrDiscard(ctx).Error(err, "Kernels of nodes cannot be asked for an echo, so deaths are found later on busy cores; give the agent CAP_NET_RAW")
	} else {
		m.setEcho(e)
		defer func() { m.setEcho(nil); e.close() }()
	}
	interval := m.cfg.Timing.ProbeInterval
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for last := m.now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := m.now()
		m.lag(now.Sub(last) - interval)
		m.probe(now, min(now.Sub(last), interval))
		last = now
		m.update()
	}
}

// forgetPings is after how long without a peer the answers to older pings are no
// measure of its round trip. One that was held dead wrongly is back before.
const forgetPings = 300 * time.Millisecond

// lag notes how late a tick was. The worst fades by a hundredth with each.
func (m *Members) lag(late time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.late -= m.late / 100
	m.late = max(m.late, late)
}

// lateness is what this process tells of itself in a ping or ack.
func (m *Members) lateness() []byte {
	return binary.BigEndian.AppendUint16(nil, uint16(min(m.late.Milliseconds(), math.MaxUint16)))
}

// probe does one tick. passed is how much of the time since the last one counts
// as silence of the peers.
func (m *Members) probe(now time.Time, passed time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.cfg.Timing
	m.takeEchoes(now)
	for name, p := range m.peers {
		watched := m.watch[name]
		if watched {
			p.silence += passed
		}
		if p.waiting {
			p.mute += passed
		}
		if !watched && p.alive {
			continue
		}
		if !p.alive && now.Sub(p.asked) < t.LostInterval {
			continue
		}
		m.ping(p, now)
		if !p.alive || p.unanswered(t) || now.Sub(p.echoAsked) >= echoInterval {
			m.askEcho(p, now)
		}
		waning := !p.alive || p.silence >= t.SilenceLimit/2
		if !p.heard.IsZero() && now.Sub(p.relayed) >= relayInterval && waning {
			p.relayed = now
			m.askRelays(p)
		}
		if waning && p.met {
			m.knock(p, now)
		}
	}
}

// How a node is knocked at whose agent is silent.
const (
	knockTimeout      = 400 * time.Millisecond
	knockInterval     = 250 * time.Millisecond
	longKnockInterval = 10 * time.Second // once it has been silent for a minute
)

// knock finds out whether the kernel of a silent agent's node is alive: it
// refuses the connection then, or takes it. It begins before the agent is held
// dead, so that it is known by then whether the node is, too. The lock is held.
func (m *Members) knock(p *peer, now time.Time) {
	interval := knockInterval
	if now.Sub(p.heard) > time.Minute {
		interval = longKnockInterval
	}
	if p.knocking || now.Sub(p.knocked) < interval {
		return
	}
	p.knocking, p.knocked = true, now
	addr := p.addr().String()
	m.knocks.Go(func() {
		conn, err := net.DialTimeout("tcp", addr, knockTimeout)
		if err == nil {
			conn.Close()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		p.knocking = false
		if p.silence == 0 && p.alive {
			return // heard meanwhile
		}
		refused := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
		p.noKernel, p.kernel = !p.alive && err != nil && !refused, refused // the next tick tells
	})
}

func (m *Members) setEcho(e echo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.echo = e
}

// askEcho asks p's kernel for an echo. The lock is held.
func (m *Members) askEcho(p *peer, now time.Time) {
	if addr := p.addr(); m.echo != nil && addr.IsValid() {
		m.echo.ask(addr.Addr())
		p.echoAsked, p.waiting = now, true
	}
}

// takeEchoes notes whose kernels have answered. The lock is held.
func (m *Members) takeEchoes(now time.Time) {
	if m.echo == nil {
		return
	}
	for _, from := range m.echo.answered() {
		for _, p := range m.peers {
			if p.addr().Addr() == from {
				p.echoed, p.waiting, p.mute = now, false, 0
			}
		}
	}
}

// ping sends one numbered ping. The lock is held.
func (m *Members) ping(p *peer, now time.Time) {
	m.number++
	p.asked = now
	p.pings[m.number%uint64(len(p.pings))] = sentPing{m.number, now}
	m.send(p, message{kind: ping, number: m.number, body: m.lateness()})
}

// askRelays asks a few others whether p answers them. The lock is held.
func (m *Members) askRelays(p *peer) {
	asked := 0
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		other := m.peers[name]
		if other == p || !other.alive {
			continue
		}
		m.send(other, message{kind: relay, target: p.name})
		if asked++; asked == relays {
			return
		}
	}
}

// handle takes a message of another agent. It runs in memberlist's only packet
// handler and does not block.
func (m *Members) handle(msg message) {
	if msg.from == m.cfg.Name {
		return
	}
	m.mu.Lock()
	now := m.now()
	p := m.peer(msg.from)
	returned := !p.alive
	if returned && now.Sub(p.since) > forgetPings {
		// Pings that waited for the link to come back are answered late; that
		// says nothing about how quick the peer is.
		clear(p.pings[:])
	}
	p.sign(now)
	if (msg.kind == ping || msg.kind == ack) && len(msg.body) == 2 {
		p.late = time.Duration(binary.BigEndian.Uint16(msg.body)) * time.Millisecond
	}
	switch msg.kind {
	case ping:
		m.send(p, message{kind: ack, number: msg.number, body: m.lateness()})
	case ack:
		p.roundTrip(msg.number, now)
	case facts:
		m.learn(p, msg.number, msg.body)
	case relay:
		m.relay(p, msg.target, now)
	case yes:
		if t := m.peers[msg.target]; t != nil {
			t.sign(now)
		}
	case no:
		if t := m.peers[msg.target]; t != nil && now.Sub(t.heard) > m.cfg.Timing.SilenceLimit/2 {
			t.nos[msg.from] = now
		}
	}
	if returned && !p.gossip {
		wake(m.joinNow)
	}
	if returned && m.facts != nil {
		m.send(p, message{kind: facts, number: m.version, body: m.facts})
	}
	m.mu.Unlock()
	if returned || msg.kind == yes {
		m.update()
	}
}

// relay pings target on behalf of p, and tells p later whether it answered. The
// lock is held.
func (m *Members) relay(p *peer, name string, now time.Time) {
	t := m.peers[name]
	if t == nil || t == p {
		return
	}
	m.ping(t, now)
	wait := m.cfg.Timing.SilenceLimit / 2
	time.AfterFunc(wait/5, func() { m.testify(p.name, name, now, false) })
	time.AfterFunc(wait, func() { m.testify(p.name, name, now, true) })
}

// testify tells asker whether target has been heard since. A "no" is said only
// at the end.
func (m *Members) testify(asker, target string, since time.Time, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, t := m.peers[asker], m.peers[target]
	switch {
	case p == nil || t == nil:
	case t.heard.After(since):
		m.send(p, message{kind: yes, target: target})
	case last:
		m.send(p, message{kind: no, target: target})
	}
}
