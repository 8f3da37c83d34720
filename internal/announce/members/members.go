// SPDX-License-Identifier: Apache-2.0

package members

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/hashicorp/memberlist"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// Peer is another node, as the API server lists it.
type Peer struct {
	Name string
	// Addresses are its InternalIPs. It is reached by the first of the family of
	// Config.Bind, or else by the first of a family of which this node has an
	// address as well; packets of it are taken from all.
	Addresses []netip.Addr
}

// State is how much of a node answers.
type State uint8

const (
	// AgentSilent: the agent does not answer, or was never heard; of the node's
	// kernel nothing is known.
	AgentSilent State = iota
	// Alive: the agent answers.
	Alive
	// HostAnswers: the agent is silent, but the kernel of its node refuses
	// connections to the agent's port or answers echo requests. So the node still
	// forwards.
	HostAnswers
	// HostSilent: neither the agent nor the kernel of its node answers, and the
	// kernel did before.
	HostSilent
	// Unreachable: the node, not only its agent, seems to be dead. It was alive,
	// its kernel neither refuses a connection to the agent's port nor answers an
	// echo request, and at least one other peer has said in the last few seconds
	// that it gets no answer from the agent either. It is never so on this node's
	// word alone, nor on gossip's, which may be this node's own echo.
	Unreachable
)

// Member is what is known about a node.
type Member struct {
	Name  string
	State State
	// Since is when it last became Alive or ceased to be.
	Since time.Time
	// Old: its agent is of a former version, or may be, for it has not been heard.
	Old bool
	// Apart: it has no address of a family of which this node has one, so that the
	// two do not hear each other.
	Apart bool
	// Info is what it published last; nil if it never did. Not to be modified.
	Info []byte
}

// Alive reports whether the node's agent answers.
func (m Member) Alive() bool { return m.State == Alive }

// Gone reports whether not only the agent of a node is silent but its kernel too.
func (m Member) Gone() bool { return m.State == HostSilent || m.State == Unreachable }

// Death is the moment at which a watched peer was found dead.
type Death struct {
	Name string
	// Silence is for how long nothing had been heard.
	Silence time.Duration
}

// Members is this node's view of the others. Its methods are safe for concurrent
// use.
type Members struct {
	cfg       Config
	changed   chan struct{}
	keyed     chan struct{} // closed by the first SetKeys
	joinNow   chan struct{}
	infoNow   chan struct{}
	onDeath   func(Death)
	tcpProbes sync.WaitGroup

	transport *transport
	id        nodeinfo.ID
	boot      uint64 // of this process
	offset    uint32 // of its stamps
	started   time.Time
	current   atomic.Pointer[Keys]

	mu         sync.Mutex
	list       *memberlist.Memberlist
	identity   *Identity
	public     map[string][]byte      // keys that nodes have published
	own        []netip.Addr           // this node's addresses, from the API
	ids        map[nodeinfo.ID]string // of the peers
	keys       [][]byte
	using      []byte // the key that encrypts until KeyGrace is over; nil for the first
	keyring    *memberlist.Keyring
	peers      map[string]*peer
	watch      map[string]bool
	info       []byte // own
	version    uint64 // of info
	oldInfo    []byte
	oldVersion uint64
	sent       uint64        // number of the last packet
	turn       []string      // peers to ask next, of those that are alive and not probed
	late       time.Duration // of this process's own timers, the worst of late
	echo       echo          // nil without CAP_NET_RAW
	now        func() time.Time
	crash      bool // end without a goodbye, for tests
}

// New returns Members without peers. onDeath, which may be nil, is called for each
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
	m := &Members{
		cfg:        cfg,
		id:         nodeinfo.IDOf(cfg.Name),
		boot:       rand.Uint64(),
		offset:     rand.Uint32(),
		started:    time.Now(),
		ids:        map[nodeinfo.ID]string{},
		changed:    make(chan struct{}, 1),
		keyed:      make(chan struct{}),
		joinNow:    make(chan struct{}, 1),
		infoNow:    make(chan struct{}, 1),
		onDeath:    onDeath,
		peers:      map[string]*peer{},
		watch:      map[string]bool{},
		oldVersion: uint64(time.Now().UnixNano()),
		now:        time.Now,
	}
	m.transport = newTransport(cfg.Bind.Port(), m.receive)
	return m, nil
}

// Changed receives after View has changed. One receiver is served.
func (m *Members) Changed() <-chan struct{} { return m.changed }

// SetPeers replaces the list of the other nodes. This node's own name is left
// out. Peers that are gone from the list are forgotten unless gossip still has
// them.
func (m *Members) SetPeers(peers []Peer) {
	m.mu.Lock()
	listed := map[string]bool{}
	for _, p := range peers {
		if p.Name == m.cfg.Name {
			m.own = slices.Clone(p.Addresses)
		}
	}
	names, sources := map[string]netip.AddrPort{}, []netip.Addr{}
	join := false
	for _, l := range peers {
		if l.Name == m.cfg.Name {
			continue
		}
		listed[l.Name] = true
		p := m.peer(l.Name)
		join = join || !p.gossip
		p.gone, p.all, p.listed = false, l.Addresses, netip.AddrPort{}
		if a, ok := m.address(l); ok {
			p.listed = netip.AddrPortFrom(a, m.cfg.Bind.Port())
			names[l.Name] = p.listed
		}
		p.apart = !p.listed.IsValid() && len(l.Addresses) > 0
		sources = append(sources, l.Addresses...)
	}
	for name, p := range m.peers {
		if !listed[name] {
			p.listed, p.gone = netip.AddrPort{}, true
			if !p.gossip {
				delete(m.peers, name)
			}
		}
	}
	m.transport.know(names, sources)
	running := m.list != nil
	m.mu.Unlock()
	if running {
		m.bindOthers(context.Background())
	}
	if join {
		wake(m.joinNow)
	}
	m.update()
}

// address returns where p is sent to.
func (m *Members) address(p Peer) (netip.Addr, bool) {
	for _, same := range []bool{true, false} {
		for _, a := range p.Addresses {
			if (a.Is4() == m.cfg.Bind.Addr().Is4()) == same && (same || m.ownOf(a).IsValid()) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// ownOf returns this node's address of a's family. The lock is held.
func (m *Members) ownOf(a netip.Addr) netip.Addr {
	if a.Is4() == m.cfg.Bind.Addr().Is4() {
		return m.cfg.Bind.Addr()
	}
	for _, o := range m.own {
		if o.Is4() == a.Is4() {
			return o
		}
	}
	return netip.Addr{}
}

// bindOthers serves this node's address of the other family, if it has one.
func (m *Members) bindOthers(ctx context.Context) {
	m.mu.Lock()
	i := slices.IndexFunc(m.own, func(a netip.Addr) bool { return a.Is4() != m.cfg.Bind.Addr().Is4() })
	var other netip.Addr
	if i >= 0 {
		other = m.own[i]
	}
	m.mu.Unlock()
	if other.IsValid() {
		if err := m.transport.bind(other); err != nil {
			logr.FromContextOrDiscard(ctx).Info("Other nodes are not heard on this node's second address", "address", other, "reason", err.Error())
		}
	}
}

// SetIdentities sets this node's key pair, whose public half it has published, and
// what the others have published, by name. No third node can speak for either of two
// that have. own may be nil: this node goes by the gossip keys then. public is not
// to be changed afterwards.
func (m *Members) SetIdentities(own *Identity, public map[string][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.identity != own {
		m.identity = own
		m.forgetSecrets()
	}
	m.public = public
	for name, p := range m.peers {
		m.setPublic(p, public[name])
	}
}

// setPublic sets the key that p has published. If a key has been deleted, an
// administrator expects an agent of a former version there. The lock is
// held.
func (m *Members) setPublic(p *peer, key []byte) {
	if len(key) != PublicKeyLength {
		key = nil
	}
	if bytes.Equal(p.public, key) {
		return
	}
	p.public, p.keys = key, sealKeys{}
	m.unlessBound(p)
}

// unlessBound has p heard in the former format again until it answers in the present
// one, which it does immediately if it still can, unless it has a key, and so cannot be
// of a former version. Its Info stays meanwhile. The lock is held.
func (m *Members) unlessBound(p *peer) {
	if !m.bound(p) {
		p.secure, p.tried, p.version = false, time.Time{}, 0
	}
}

// Secrets returns what this node and another have in common, and no third where both
// have published keys; the one to use first. It is empty for a node that is not
// known.
func (m *Members) Secrets(name string) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.peers[name]; p != nil {
		return m.secretsOf(p)
	}
	return nil
}

// StampUnit is the unit of stamps.
const StampUnit = 100 * time.Millisecond

// Stamp returns this node's clock for frames on the link, which pings carry to the
// other nodes. It starts anywhere, wraps around, and does not depend on wall time.
func (m *Members) Stamp() uint32 { return m.offset + uint32(time.Since(m.started)/StampUnit) }

// Clock returns another node's Stamp as it should be now; known is false until that
// node has sent it.
func (m *Members) Clock(name string) (stamp uint32, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[name]
	if p == nil || p.stamped.IsZero() {
		return 0, false
	}
	return p.stamp + uint32(m.now().Sub(p.stamped)/StampUnit), true
}

// Keys are the gossip keys at one moment.
type Keys struct {
	// Accepted are taken from others. The first is the one to use; there is at
	// least one.
	Accepted [][]byte
}

// Keys returns the gossip keys, nil before the first SetKeys. The pointer is another
// one whenever they have changed. It takes no lock.
func (m *Members) Keys() *Keys { return m.current.Load() }

// speaksNew reports whether p is to be taken by its word in the present format alone.
func (m *Members) speaksNew(p *peer) bool { return p.secure || m.bound(p) }

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
	if !first && m.using == nil {
		m.using = m.keys[0]
	}
	m.keys = keys
	m.forgetSecrets()
	if first {
		close(m.keyed)
		return nil
	}
	if m.keyring == nil {
		m.using = nil
		m.forgetSecrets()
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
// listed.
func (m *Members) useKeys() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.using = nil
	m.forgetSecrets()
	if m.keyring == nil || m.keyring.UseKey(m.keys[0]) != nil {
		return
	}
	for _, k := range m.keyring.GetKeys() {
		if !slices.ContainsFunc(m.keys, func(l []byte) bool { return bytes.Equal(k, l) }) {
			_ = m.keyring.RemoveKey(k)
		}
	}
}

// SetInfo publishes something about this node, at most MaxInfo bytes. The other nodes
// get it within a round trip, and again until they confirm it.
func (m *Members) SetInfo(b []byte) error {
	if len(b) > MaxInfo {
		return fmt.Errorf("set info: %d bytes, at most %d are possible", len(b), MaxInfo)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if bytes.Equal(b, m.info) && m.info != nil {
		return nil
	}
	m.info = append([]byte{}, b...)
	m.version++
	now := m.now()
	for _, p := range m.peers {
		m.push(p, now)
	}
	return nil
}

// SetOldInfo is SetInfo for agents of a former version, at most MaxOldInfo bytes.
func (m *Members) SetOldInfo(b []byte) error {
	if len(b) > MaxOldInfo {
		return fmt.Errorf("set info for former versions: %d bytes, at most %d are possible", len(b), MaxOldInfo)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if bytes.Equal(b, m.oldInfo) && m.oldInfo != nil {
		return nil
	}
	m.oldInfo = append([]byte{}, b...)
	m.oldVersion++
	for _, p := range m.peers {
		if !m.speaksNew(p) {
			m.sendOld(p, message{kind: infoPart, number: m.oldVersion, body: m.oldInfo})
		}
	}
	wake(m.infoNow)
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

// View returns what is known about every other node, by name.
func (m *Members) View() map[string]Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]Member, len(m.peers))
	for name, p := range m.peers {
		out[name] = Member{
			Name: name, State: p.state, Since: p.since, Info: p.info,
			Old: !m.speaksNew(p), Apart: p.apart,
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
	return max(lateWeight*(late-idleLateness), 0)
}

// Stalled reports whether a watched peer has left at least one ping unanswered. If
// that goes on it will be dead; until then nothing else should be held against it.
func (m *Members) Stalled(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.peers[name]
	return p != nil && m.watch[name] && p.unanswered(m.cfg.Timing)
}

// Probes reports whether peers are probed directly; else gossip decides alone.
func (m *Members) Probes() bool { return m.cfg.Timing.ProbeInterval > 0 }

// Joined reports whether every peer that is listed has been heard.
func (m *Members) Joined() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.listed.IsValid() && !p.alive {
			return false
		}
	}
	return m.list != nil
}

// peer returns the record of name, making it if need be. The lock is held.
func (m *Members) peer(name string) *peer {
	p := m.peers[name]
	if p == nil {
		p = &peer{name: name, id: nodeinfo.IDOf(name), nos: map[string]time.Time{}, since: m.now()}
		m.peers[name] = p
		m.ids[p.id] = name
		m.setPublic(p, m.public[name])
	}
	return p
}

// update recomputes the state of every peer and signals a change.
func (m *Members) update() {
	m.mu.Lock()
	now := m.now()
	changed := false
	for _, name := range slices.Sorted(maps.Keys(m.peers)) {
		p := m.peers[name]
		was := p.alive
		changed = m.updateState(p, now) || changed
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
	wg.Go(func() { m.infoLoop(ctx) })
	if m.cfg.Timing.ProbeInterval > 0 {
		wg.Go(func() { m.probeLoop(ctx) })
	}
	wg.Wait()
	m.tcpProbes.Wait()
	return m.stop()
}
