// SPDX-License-Identifier: Apache-2.0

package members

import (
	"context"
	"encoding/binary"
	"fmt"
	stdlog "log"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/memberlist"
)

// leaveTimeout bounds how long a goodbye may take.
const leaveTimeout = 500 * time.Millisecond

// start creates the memberlist, which opens its sockets.
func (m *Members) start(ctx context.Context) error {
	m.mu.Lock()
	keys := m.keys
	m.mu.Unlock()
	keyring, err := memberlist.NewKeyring(keys, keys[0])
	if err != nil {
		return fmt.Errorf("make gossip keyring: %w", err)
	}
	if err := m.transport.bind(m.cfg.Bind.Addr()); err != nil {
		return fmt.Errorf("open gossip: %w", err)
	}
	m.bindOthers(ctx)
	list, err := memberlist.Create(m.gossipConfig(ctx, keyring))
	if err != nil {
		_ = m.transport.Shutdown()
		return fmt.Errorf("open gossip on %v: %w", m.cfg.Bind, err)
	}
	m.mu.Lock()
	m.list, m.keyring = list, keyring
	m.mu.Unlock()
	return nil
}

func (m *Members) gossipConfig(ctx context.Context, keyring *memberlist.Keyring) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.cfg.Name
	c.BindAddr, c.BindPort = m.cfg.Bind.Addr().String(), int(m.cfg.Bind.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.Keyring = keyring
	c.Transport = m.transport
	c.Delegate, c.Events = delegate{m}, delegate{m}
	c.EnableCompression = false
	c.DisableTcpPings = true
	c.TCPTimeout = time.Second
	c.DeadNodeReclaimTime = time.Second
	c.PushPullInterval = 15 * time.Second
	c.AwarenessMaxMultiplier = 4
	c.HandoffQueueDepth = 4096
	g := m.cfg.Timing.Gossip
	c.ProbeInterval, c.ProbeTimeout, c.GossipInterval = g.ProbeInterval, g.ProbeTimeout, g.GossipInterval
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = g.SuspicionMult, g.SuspicionMaxTimeoutMult
	c.Logger = stdlog.New(logWriter{logr.FromContextOrDiscard(ctx).WithName("gossip")}, "", 0)
	return c
}

// stop says goodbye and closes the sockets.
func (m *Members) stop() error {
	m.mu.Lock()
	list, crash := m.list, m.crash
	m.list, m.keyring = nil, nil
	m.mu.Unlock()
	if !crash {
		_ = list.Leave(leaveTimeout) // a node that did not hear it detects the death
	}
	if err := list.Shutdown(); err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}

// joinLoop joins listed peers that gossip does not hold alive.
func (m *Members) joinLoop(ctx context.Context) {
	tick := time.NewTicker(m.cfg.Timing.JoinInterval)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, t := range m.unjoined() {
			wg.Go(func() { m.join(t) })
		}
		select {
		case <-tick.C:
		case <-m.joinNow:
		case <-ctx.Done():
			return
		}
	}
}

// maxJoins is how many attempts are made at a time.
const maxJoins = 8

// target is a peer to join.
type target struct {
	name string
	addr netip.AddrPort
}

func (m *Members) unjoined() []target {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []target
	for name, p := range m.peers {
		if len(out) < maxJoins && !p.gossip && !p.joining && p.listed.IsValid() {
			p.joining = true
			out = append(out, target{name, p.listed})
		}
	}
	return out
}

func (m *Members) join(t target) {
	m.mu.Lock()
	list := m.list
	m.mu.Unlock()
	// An error means that the peer is not there yet; the next tick tries again.
	_, _ = list.Join([]string{t.name + "/" + t.addr.String()})
	m.mu.Lock()
	if p := m.peers[t.name]; p != nil {
		p.joining = false
	}
	m.mu.Unlock()
}

// infoLoop lets memberlist gossip a new Info.
func (m *Members) infoLoop(ctx context.Context) {
	for {
		select {
		case <-m.infoNow:
			m.mu.Lock()
			list := m.list
			m.mu.Unlock()
			_ = list.UpdateNode(time.Second) // a later one, or push and pull, repeats it
		case <-ctx.Done():
			return
		}
	}
}

// delegate is what memberlist calls, some of it with memberlist's locks held. So
// neither it, nor anything that runs with Members.mu held, may call a method of
// memberlist that takes them.
type delegate struct{ m *Members }

// NodeMeta returns what agents of a former version get.
func (d delegate) NodeMeta(limit int) []byte {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	if d.m.oldInfo == nil || 8+len(d.m.oldInfo) > limit {
		return nil
	}
	return append(binary.BigEndian.AppendUint64(nil, d.m.oldVersion), d.m.oldInfo...)
}

func (d delegate) NotifyMsg(b []byte) {
	if msg, ok := decode(b); ok {
		d.m.handle(msg)
	}
}

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.m.gossiped(n, true) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.m.gossiped(n, true) }
func (d delegate) NotifyLeave(n *memberlist.Node)  { d.m.gossiped(n, false) }

func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d delegate) LocalState(bool) []byte          { return nil }
func (d delegate) MergeRemoteState([]byte, bool)   {}

// gossiped takes memberlist's word on a node. It is hearsay, good for asking the node
// itself.
func (m *Members) gossiped(n *memberlist.Node, alive bool) {
	if n.Name == m.cfg.Name {
		return
	}
	m.mu.Lock()
	p := m.peer(n.Name)
	p.gossip = alive
	if !alive && p.gone {
		delete(m.peers, n.Name)
	}
	now := m.now()
	switch {
	case m.cfg.Timing.ProbeInterval == 0: // it is all that there is
	case alive == p.alive:
	case !alive:
		m.suspect(p, now)
	case m.list != nil:
		m.ping(p, now)
	}
	if alive && len(n.Meta) >= 8 {
		m.learnOld(p, binary.BigEndian.Uint64(n.Meta), n.Meta[8:])
	}
	m.mu.Unlock()
	m.update()
}

// suspect has p asked until it answers or is found dead. The lock is held.
func (m *Members) suspect(p *peer, now time.Time) {
	if !m.probed(p) {
		p.suspected, p.silence, p.waiting, p.mute = now, 0, false, 0
		m.ping(p, now)
	}
}

// learnOld takes an Info in the former format, unless p speaks the present one. The
// lock is held.
func (m *Members) learnOld(p *peer, version uint64, b []byte) {
	if !m.speaksNew(p) && version > p.version {
		p.version, p.info = version, append([]byte{}, b...)
		wake(m.changed)
	}
}

// logWriter takes memberlist's lines: what it calls an error is nothing that an
// operator has to care about one by one.
type logWriter struct{ log logr.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := 2
	if strings.HasPrefix(line, "[ERR]") {
		level = 1
	}
	if _, text, ok := strings.Cut(line, "memberlist: "); ok {
		line = text
	}
	w.log.V(level).Info("Gossip", "message", line)
	return len(b), nil
}

// sendOld sends a message in the former format. It is best effort, like UDP. The
// lock is held: SendBestEffort, given a node, takes none of memberlist's.
func (m *Members) sendOld(p *peer, msg message) {
	addr := p.addr()
	if m.list == nil || !addr.IsValid() {
		return
	}
	msg.from = m.cfg.Name
	to := &memberlist.Node{Name: p.name, Addr: addr.Addr().AsSlice(), Port: addr.Port()}
	_ = m.list.SendBestEffort(to, msg.encode())
}
