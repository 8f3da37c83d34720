// SPDX-License-Identifier: Apache-2.0

package members

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Peer is another node, as the API server lists it.
type Peer struct {
	Name string
	// Addresses are its InternalIPs, of which the first of the family of
	// Config.Bind is used.
	Addresses []netip.Addr
}

// Member is what is known about a node.
type Member struct {
	Name string
	// Alive: its agent answers. Since is when that last changed.
	Alive bool
	Since time.Time
	// Unreachable: the node, not only its agent, seems to be dead. It was alive,
	// its kernel neither refuses a connection to the agent's port nor answers an
	// echo request, and at least one other peer has said in the last few seconds
	// that it gets no answer from the agent either. It is never true on this
	// node's word alone, nor on gossip's, which may be this node's own echo.
	Unreachable bool
	// HostAnswers: the agent is silent, but the kernel of its node refuses
	// connections to the agent's port or answers echo requests. So the node still
	// forwards.
	HostAnswers bool
	// NodeSilent: neither the agent nor the kernel of its node answers, and the
	// kernel did before.
	NodeSilent bool
	// Old: its agent is of a former version, or may be, for it has not been heard.
	Old bool
	// Facts are what it told last; nil if it never told. Not to be modified.
	Facts []byte
}

// Gone tells whether not only the agent of a node is silent but its kernel too.
func (m Member) Gone() bool { return m.NodeSilent || m.Unreachable }

// Death is the moment at which a watched peer was found dead.
type Death struct {
	Name string
	// Silence is for how long nothing had been heard.
	Silence time.Duration
}

// Members is this node's view of the others. Its methods are safe for concurrent
// use.
type Members struct {
	cfg     Config
	changed chan struct{}
	keyed   chan struct{} // closed by the first SetKeys
	joinNow chan struct{}
	factNow chan struct{}
	onDeath func(Death)
	knocks  sync.WaitGroup

	mu      sync.Mutex
	list    *memberlist.Memberlist
	keys    [][]byte
	keyring *memberlist.Keyring
	peers   map[string]*peer
	watch   map[string]bool
	facts   []byte        // own
	version uint64        // of facts
	number  uint64        // of the last message
	late    time.Duration // of this process's own timers, the worst of late
	echo    echo          // nil without CAP_NET_RAW
	now     func() time.Time
	crash   bool // end without a goodbye, for tests
}

// New gives Members that know nobody. onDeath, which may be nil, is told of each
// watched peer that is found dead; it must not block, nor call Members.
func New(cfg Config, onDeath func(Death)) (*Members, error) {
	if cfg.Timing == (Timing{}) {
		cfg.Timing = DefaultTiming()
	}
	if cfg.Bind.Port() == 0 {
		cfg.Bind = netip.AddrPortFrom(cfg.Bind.Addr(), Port)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if onDeath == nil {
		onDeath = func(Death) {}
	}
	return &Members{
		cfg:     cfg,
		changed: make(chan struct{}, 1),
		keyed:   make(chan struct{}),
		joinNow: make(chan struct{}, 1),
		factNow: make(chan struct{}, 1),
		onDeath: onDeath,
		peers:   map[string]*peer{},
		watch:   map[string]bool{},
		version: uint64(time.Now().UnixNano()),
		now:     time.Now,
	}, nil
}

// Changed receives after View has changed. One receiver is served.
func (m *Members) Changed() <-chan struct{} { return m.changed }

// SetPeers replaces the list of the other nodes. This node's own name is left
// out. Peers that are gone from the list are forgotten unless gossip still has
// them.
func (m *Members) SetPeers(peers []Peer) {
	m.mu.Lock()
	listed := map[string]netip.AddrPort{}
	for _, p := range peers {
		if addr, ok := m.address(p); ok && p.Name != m.cfg.Name {
			listed[p.Name] = netip.AddrPortFrom(addr, m.cfg.Bind.Port())
		}
	}
	join := false
	for name, p := range m.peers {
		if _, ok := listed[name]; !ok {
			p.listed = netip.AddrPort{}
			if !p.gossip {
				delete(m.peers, name)
			}
		}
	}
	for name, addr := range listed {
		p := m.peer(name)
		join = join || !p.gossip
		p.listed = addr
	}
	m.mu.Unlock()
	if join {
		wake(m.joinNow)
	}
	m.update()
}

func (m *Members) address(p Peer) (netip.Addr, bool) {
	for _, a := range p.Addresses {
		if a.Is4() == m.cfg.Bind.Addr().Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// SetKeys replaces the keys, each of KeyLength bytes. The first encrypts. Run
// waits for the first call.
func (m *Members) SetKeys(keys ...[]byte) error {
	if len(keys) == 0 {
		return fmt.Errorf("set gossip keys: none given")
	}
	for i, k := range keys {
		if len(k) != KeyLength {
			return fmt.Errorf("set gossip keys: key %d has %d bytes, want %d", i+1, len(k), KeyLength)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.EqualFunc(keys, m.keys, bytes.Equal) {
		return nil
	}
	first := m.keys == nil
	m.keys = keys
	if first {
		close(m.keyed)
		return nil
	}
	if m.keyring == nil {
		return nil // Run takes them up
	}
	for _, k := range keys {
		if err := m.keyring.AddKey(k); err != nil {
			return fmt.Errorf("add gossip key: %w", err)
		}
	}
	time.AfterFunc(m.cfg.Timing.KeyGrace, m.useKeys)
	return nil
}

// useKeys encrypts with the first key from now on and forgets keys that are not
// listed any more.
func (m *Members) useKeys() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keyring == nil || m.keyring.UseKey(m.keys[0]) != nil {
		return
	}
	for _, k := range m.keyring.GetKeys() {
		if !slices.ContainsFunc(m.keys, func(l []byte) bool { return bytes.Equal(k, l) }) {
			_ = m.keyring.RemoveKey(k)
		}
	}
}

// SetFacts tells the other nodes something about this one, at most MaxFacts
// bytes. They get it within a round trip, and again by gossip.
func (m *Members) SetFacts(b []byte) error {
	if len(b) > MaxFacts {
		return fmt.Errorf("set facts: %d bytes, at most %d are possible", len(b), MaxFacts)
	}
	m.mu.Lock()
	if bytes.Equal(b, m.facts) && m.facts != nil {
		m.mu.Unlock()
		return nil
	}
	m.facts = append([]byte{}, b...)
	m.version++
	for _, p := range m.peers {
		m.send(p, message{kind: facts, number: m.version, body: m.facts})
	}
	m.mu.Unlock()
	wake(m.factNow)
	return nil
}

// Watch names the peers whose death is to be found quickly.
func (m *Members) Watch(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.watch
	m.watch = make(map[string]bool, len(names))
	for _, n := range names {
		m.watch[n] = true
		if p := m.peers[n]; p != nil && !old[n] {
			p.silence, p.waiting, p.mute = 0, false, 0 // it was not asked until now
			if !p.alive {
				p.silence = m.cfg.Timing.MaxSilenceLimit
			}
		}
	}
}

// View gives what is known about every other node, by name.
func (m *Members) View() map[string]Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]Member, len(m.peers))
	for name, p := range m.peers {
		out[name] = Member{
			Name: name, Alive: p.alive, Since: p.since, Facts: p.facts,
			Unreachable: p.unreachable, HostAnswers: p.hostAnswers, NodeSilent: p.nodeSilent,
		}
	}
	return out
}

// Slack is by how much everything takes longer at present because cores are
// busy, this node's or those of a peer that is alive; 0 while they are not.
func (m *Members) Slack() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	late := m.late
	for _, p := range m.peers {
		if p.alive || m.now().Sub(p.heard) < m.cfg.Timing.MaxSilenceLimit {
			late = max(late, p.late)
		}
	}
	return max(lateWeight*(late-calmLateness), 0)
}

// Stalled tells whether a watched peer has left at least one ping unanswered. If
// that goes on it will be dead; until then nothing else should be held against it.
func (m *Members) Stalled(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[name]
	return p != nil && m.watch[name] && p.unanswered(m.cfg.Timing)
}

// Joined tells whether gossip has every peer that is listed.
func (m *Members) Joined() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.listed.IsValid() && !p.gossip {
			return false
		}
	}
	return m.list != nil
}

// peer gives the record of name, making it if need be. The lock is held.
func (m *Members) peer(name string) *peer {
	p := m.peers[name]
	if p == nil {
		p = &peer{name: name, nos: map[string]time.Time{}, since: m.now()}
		m.peers[name] = p
	}
	return p
}

// update recomputes who is alive, who is reachable, and tells if anything changed.
func (m *Members) update() {
	m.mu.Lock()
	now := m.now()
	changed := false
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		was := p.alive
		changed = m.judge(p, now) || changed
		if was && !p.alive && m.watch[name] {
			m.onDeath(Death{Name: name, Silence: now.Sub(p.heard)})
		}
	}
	m.mu.Unlock()
	if changed {
		wake(m.changed)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run takes part in the gossip until ctx ends, then leaves it. It waits for the
// first SetKeys.
func (m *Members) Run(ctx context.Context) error {
	select {
	case <-m.keyed:
	case <-ctx.Done():
		return nil
	}
	if err := m.start(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { m.joinLoop(ctx) })
	wg.Go(func() { m.factsLoop(ctx) })
	if m.cfg.Timing.ProbeInterval > 0 {
		wg.Go(func() { m.probeLoop(ctx) })
	}
	wg.Wait()
	m.knocks.Wait()
	return m.stop()
}
