// SPDX-License-Identifier: Apache-2.0

package members

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
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

// lateness is what this process sends about itself to agents of a former version.
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
	m.round(now)
	lost := maxLostPings
	for _, p := range m.peers {
		probed := m.probed(p)
		if probed {
			p.silence += passed
		}
		if p.waiting {
			p.mute += passed
		}
		switch {
		case !probed && p.alive:
			m.tryNew(p, now)
			continue
		case !p.alive && (lost == 0 || now.Sub(p.asked) < m.lostInterval(p, now)):
			continue
		case !p.alive:
			lost--
		}
		m.ping(p, now)
		if !p.alive || p.unanswered(t) || now.Sub(p.echoAsked) >= echoInterval {
			m.askEcho(p, now)
		}
		waning := !p.alive || p.silence >= t.SilenceLimit/2
		if !p.heard.IsZero() && now.Sub(p.relayed) >= relayInterval && waning {
			p.relayed = now
			m.askRelays(p, now)
		}
		if waning && p.wasAlive {
			m.tcpProbe(p, now)
		}
	}
}

// Peers that are alive and neither watched nor suspected are asked one after the other,
// roundPings of them a tick, but none more often than every roundInterval. So a death
// that gossip does not report is found as well: of 5,000 nodes within a minute.
const (
	roundPings    = 4
	roundInterval = time.Second
	// maxLostPings is how many peers that are not alive are asked in a tick, and
	// longLostFactor how much less often one that has been so for a minute: it asks
	// itself when it is back.
	maxLostPings   = 256
	longLostFactor = 8
	// tryTime is how long after its return a peer is asked in the present format
	// that has answered in the former one alone.
	tryTime = 3 * time.Second
)

// tryNew asks a peer that has just come back in the former format in the present one: what was
// sent to it before may have come too early. The lock is held.
func (m *Members) tryNew(p *peer, now time.Time) {
	if !m.speaksNew(p) && now.Sub(p.since) < tryTime && now.Sub(p.tried) >= m.cfg.Timing.LostInterval {
		m.ping(p, now)
	}
}

func (m *Members) lostInterval(p *peer, now time.Time) time.Duration {
	if now.Sub(p.since) > time.Minute {
		return m.cfg.Timing.LostInterval * longLostFactor
	}
	return m.cfg.Timing.LostInterval
}

// round asks the peers whose turn it is, and suspects those that did not answer in the
// round before. The lock is held.
func (m *Members) round(now time.Time) {
	if len(m.turn) == 0 {
		for name := range m.peers {
			m.turn = append(m.turn, name)
		}
	}
	for asked := 0; asked < roundPings && len(m.turn) > 0; m.turn = m.turn[1:] {
		p := m.peers[m.turn[0]]
		switch {
		case p == nil || !p.alive || m.probed(p):
		case now.Sub(p.asked) < roundInterval:
			return // all have been asked of late
		case p.heard.Before(p.asked):
			m.suspect(p, now)
			asked++
		default:
			m.ping(p, now)
			asked++
		}
	}
}

// How the kernel of a node is probed whose agent is silent.
const (
	tcpProbeTimeout      = 400 * time.Millisecond
	tcpProbeInterval     = 250 * time.Millisecond
	longTCPProbeInterval = 10 * time.Second // once it has been silent for a minute
)

// tcpProbe finds out whether the kernel of a silent agent's node is alive: it
// refuses the connection then, or takes it. It begins before the agent is held
// dead, so that it is known by then whether the node is, too. The lock is held.
func (m *Members) tcpProbe(p *peer, now time.Time) {
	interval := tcpProbeInterval
	if now.Sub(p.heard) > time.Minute {
		interval = longTCPProbeInterval
	}
	if p.tcpProbing || now.Sub(p.tcpProbed) < interval {
		return
	}
	p.tcpProbing, p.tcpProbed = true, now
	addr := p.addr().String()
	m.tcpProbes.Go(func() {
		conn, err := net.DialTimeout("tcp", addr, tcpProbeTimeout)
		if err == nil {
			conn.Close()
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		p.tcpProbing = false
		if p.silence == 0 && p.alive {
			return // heard meanwhile
		}
		refused := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
		p.noKernel, p.kernel = !p.alive && err != nil && !refused, refused // used in the next tick
	})
}

func (m *Members) setEcho(e echo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.echo = e
}

// askEcho asks p's kernel for an echo. The lock is held.
func (m *Members) askEcho(p *peer, now time.Time) {
	if addr := p.addr(); m.echo != nil && addr.IsValid() && family(addr.Addr()) == family(m.cfg.Bind.Addr()) {
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

// ping sends one ping, also in the former format to a peer that may not know the present
// one. The lock is held.
func (m *Members) ping(p *peer, now time.Time) {
	p.asked = now
	if !m.speaksNew(p) {
		m.sendOld(p, message{kind: ping, number: p.sending(now), body: m.lateness()})
		if now.Sub(p.tried) < m.cfg.Timing.LostInterval {
			return
		}
		p.tried = now
	}
	m.send(p, ping, m.status(p, p.sending(now)).encode())
}

// status returns what this node reports to p. The lock is held.
func (m *Members) status(p *peer, nonce uint64) status {
	return status{nonce: nonce, late: m.late, stamp: m.Stamp(), version: m.version, known: p.version}
}

// send is best effort, like UDP. The lock is held.
func (m *Members) send(p *peer, k kind, body []byte) {
	if addr := p.addr(); m.list != nil && addr.IsValid() {
		if b := m.seal(p, k, body); b != nil {
			_ = m.transport.send(b, addr)
		}
	}
}

// push sends this node's Info to p. The lock is held.
func (m *Members) push(p *peer, now time.Time) {
	if m.info == nil || !m.speaksNew(p) {
		return
	}
	p.pushed = now
	for _, part := range split(m.version, m.info) {
		m.send(p, infoPart, part.encode())
	}
}

// pushInterval is the least interval of sending an Info again.
const pushInterval = 100 * time.Millisecond

// askRelays asks a few others to pass a ping on to p, and its answer back: they
// cannot make one up. The lock is held.
func (m *Members) askRelays(p *peer, now time.Time) {
	asked := 0
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		other := m.peers[name]
		switch {
		case other == p || !other.alive:
			continue
		case !m.speaksNew(other):
			m.sendOld(other, message{kind: relay, target: p.name})
		default:
			if b := m.seal(p, ping, m.status(p, p.sending(now)).encode()); b != nil {
				m.send(other, carry, b)
			}
		}
		if asked++; asked == relays {
			return
		}
	}
}

// receive takes a packet from an address that is a node's. It does not block.
func (m *Members) receive(b []byte, from netip.Addr) {
	h, sealed, ok := decodeHeader(b)
	if !ok {
		return
	}
	m.mu.Lock()
	p := m.peers[m.ids[h.from]]
	back := false
	if p != nil && h.to == m.id && slices.Contains(p.all, from) {
		back = m.take(p, h, b[:headerLength], sealed, nil)
	}
	m.mu.Unlock()
	if back {
		m.update()
	}
}

// take opens a packet of p's and does what it says, and reports whether p has just come
// back. A packet that another node has passed on came by way of it, else by is nil.
// The lock is held.
func (m *Members) take(p *peer, h header, head, sealed []byte, by *peer) (back bool) {
	k, body, ok := m.open(p, h, head, sealed)
	if !ok {
		return false
	}
	now := m.now()
	switch k {
	case ping:
		m.takePing(p, h, body, by, now)
		return false
	case ack:
		return m.takeAck(p, h, body, now)
	}
	// Everything else counts once, and from the process alone that has shown that it
	// is there now.
	if h.boot != p.boot || !p.window.take(h.number) {
		return false
	}
	switch k {
	case infoPart:
		m.takeInfo(p, body)
	case carry:
		return m.pass(p, body, now)
	case no:
		if len(body) == len(nodeinfo.ID{}) {
			m.takeNo(p, m.peers[m.ids[nodeinfo.ID(body)]], now)
		}
	}
	return false
}

// unverifiedInterval is how often a process is answered, and asked, that has not shown
// yet that it is there: what it sent may have been recorded.
const unverifiedInterval = 20 * time.Millisecond

// takePing answers. The answer goes to where the peer is, not to where the ping
// came from, so a recorded ping is no use to anybody; and it shows nothing of the
// peer. The lock is held.
func (m *Members) takePing(p *peer, h header, body []byte, by *peer, now time.Time) {
	s, ok := decodeStatus(body)
	if !ok {
		return
	}
	current := h.boot == p.boot
	switch {
	case current && !p.window.take(h.number):
		return
	case !current && now.Sub(p.answered) < unverifiedInterval:
		return
	case !current:
		p.answered = now
	}
	answer := m.status(p, s.nonce).encode()
	if by == nil {
		m.send(p, ack, answer)
	} else if b := m.seal(p, ack, answer); b != nil {
		m.send(by, carry, b)
	}
	if !current || !p.alive {
		if now.Sub(p.asked) >= unverifiedInterval {
			m.ping(p, now)
		}
		return
	}
	p.late = s.late
	m.compare(p, s, now)
}

// takeAck takes the answer to a ping of this node's that has just left: p is alive,
// and this is the process of it that is. The lock is held.
func (m *Members) takeAck(p *peer, h header, body []byte, now time.Time) (back bool) {
	s, ok := decodeStatus(body)
	if !ok {
		return false
	}
	sent, ok := p.isAnswer(s.nonce, now)
	if !ok {
		return false
	}
	if h.boot != p.boot || !p.secure {
		if p.boot != 0 && p.info != nil || !p.secure {
			wake(m.changed)
		}
		if h.boot != p.boot {
			p.info = nil // of another process than before
		}
		p.boot, p.secure = h.boot, true
		p.window, p.puzzle, p.version, p.has = window{}, puzzle{}, 0, 0
	}
	if h.number > p.window.top || p.window.top-h.number >= 64 {
		// The answer counts whatever was said in the process's name before.
		p.window = window{top: h.number, seen: 1}
	} else {
		p.window.take(h.number)
	}
	back = m.proved(p, sent, now)
	p.late, p.stamp, p.stamped = s.late, s.stamp, now
	m.compare(p, s, now)
	return back
}

// proved takes the answer to a ping that left at sent, and reports whether p has just
// come back. The lock is held.
func (m *Members) proved(p *peer, sent, now time.Time) (back bool) {
	back = !p.alive
	if back && now.Sub(p.since) > forgetPings {
		// Pings that waited for the link to come back are answered late; that says
		// nothing about how quick the peer is.
		clear(p.pings[:])
	} else {
		p.roundTrip(now.Sub(sent))
	}
	p.sign(now)
	if back && !p.gossip {
		wake(m.joinNow)
	}
	return back
}

// compare sends the Info to p again if p reports another version. The lock is held.
func (m *Members) compare(p *peer, s status, now time.Time) {
	p.latest, p.has = s.version, s.known
	if p.has != m.version && now.Sub(p.pushed) >= pushInterval {
		m.push(p, now)
	}
}

// takeInfo takes a part of p's Info. The version in its last answer is the valid one,
// whatever else came in its name. The lock is held.
func (m *Members) takeInfo(p *peer, body []byte) {
	part, ok := decodePart(body)
	if !ok || part.version == p.version || part.version < p.version && part.version != p.latest {
		return
	}
	if whole, ok := p.puzzle.add(part); ok {
		p.version, p.info = part.version, whole
		wake(m.changed)
	}
}

// pass passes on what p has packed for another node, or takes what another has packed
// for this one. The lock is held.
func (m *Members) pass(p *peer, b []byte, now time.Time) (back bool) {
	h, sealed, ok := decodeHeader(b)
	if !ok {
		return false
	}
	if h.to == m.id {
		if from := m.peers[m.ids[h.from]]; from != nil && from != p {
			return m.take(from, h, b[:headerLength], sealed, p)
		}
		return false
	}
	to := m.peers[m.ids[h.to]]
	if h.from != p.id || to == nil || to == p || !m.speaksNew(to) {
		return false
	}
	m.send(to, carry, b)
	if p.watches(to.id, now) {
		m.relay(p, to.name, now)
	}
	return false
}

// takeNo takes p's word that it did not hear t. The lock is held.
func (m *Members) takeNo(p, t *peer, now time.Time) {
	if t != nil && t != p && now.Sub(t.heard) > m.cfg.Timing.SilenceLimit/2 {
		t.nos[p.name] = now
	}
}

// handle takes a message in the former format. It runs in memberlist's only packet
// handler and does not block. It ignores peers that use the present format.
func (m *Members) handle(msg message) {
	m.mu.Lock()
	p := m.peers[msg.from]
	if p == nil || msg.from == m.cfg.Name || m.speaksNew(p) {
		m.mu.Unlock()
		return
	}
	now := m.now()
	back := false
	if (msg.kind == ping || msg.kind == ack) && len(msg.body) == 2 {
		p.late = time.Duration(binary.BigEndian.Uint16(msg.body)) * time.Millisecond
	}
	switch msg.kind {
	case ping:
		m.sendOld(p, message{kind: ack, number: msg.number, body: m.lateness()})
		if !p.alive && now.Sub(p.asked) >= unverifiedInterval {
			m.ping(p, now)
		}
	case ack:
		if sent, ok := p.isAnswer(msg.number, now); ok {
			if back = m.proved(p, sent, now); back && m.oldInfo != nil {
				m.sendOld(p, message{kind: infoPart, number: m.oldVersion, body: m.oldInfo})
			}
		}
	case infoPart:
		m.learnOld(p, msg.number, msg.body)
	case relay:
		m.relay(p, msg.target, now)
	case yes:
		if t := m.peers[msg.target]; t != nil && t != p && !m.speaksNew(t) {
			back = !t.alive
			t.sign(now)
		}
	case no:
		m.takeNo(p, m.peers[msg.target], now)
	}
	m.mu.Unlock()
	if back {
		m.update()
	}
}

// relay pings name itself when p does not hear it, and later informs p if it did not
// answer either. The lock is held.
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

// testify reports to asker whether target has been heard since. A "no" is sent only
// at the end, a "yes" only to agents of a former version.
func (m *Members) testify(asker, target string, since time.Time, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, t := m.peers[asker], m.peers[target]
	switch {
	case p == nil || t == nil:
	case t.heard.After(since):
		if !m.speaksNew(p) {
			m.sendOld(p, message{kind: yes, target: target})
		}
	case last && m.speaksNew(p):
		m.send(p, no, t.id[:])
	case last:
		m.sendOld(p, message{kind: no, target: target})
	}
}
