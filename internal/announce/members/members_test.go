// SPDX-License-Identifier: Apache-2.0

package members

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/testkit"
)

// cluster runs agents' Members on loopback addresses of this process.
type cluster struct {
	t     *testing.T
	port  uint16
	key   []byte
	nodes []*Members
	stop  []context.CancelFunc
	done  []chan error

	mu     sync.Mutex
	deaths []string
	taps   map[int]func(b []byte, from netip.Addr)
}

// tap has take called for what node i is sent by other agents.
func (c *cluster) tap(i int, take func(b []byte, from netip.Addr)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.taps = map[int]func([]byte, netip.Addr){i: take}
}

// listPeersOf lists all nodes to one.
func (c *cluster) listPeersOf(i int) {
	var peers []Peer
	for j := range c.nodes {
		peers = append(peers, Peer{Name: name(j), Addresses: []netip.Addr{c.addr(j)}})
	}
	c.nodes[i].SetPeers(peers)
}

func newCluster(t *testing.T, n int, watch bool) *cluster {
	t.Helper()
	c := &cluster{t: t, port: uint16(20000 + rand.IntN(20000)), key: bytes.Repeat([]byte{7}, KeyLength)}
	for i := range n {
		c.start(i, c.key)
	}
	c.listPeers()
	if watch {
		for i := range c.nodes {
			c.watchAll(i)
		}
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop[i]()
			<-c.done[i]
		}
	})
	return c
}

func name(i int) string { return fmt.Sprintf("node-%d", i+1) }

func (c *cluster) addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 9, 0, byte(i + 1)}) }

func (c *cluster) start(i int, keys ...[]byte) {
	c.t.Helper()
	m, err := New(Config{Name: name(i), Bind: netip.AddrPortFrom(c.addr(i), c.port)}, func(d Death) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.deaths = append(c.deaths, d.Name)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := m.SetKeys(keys...); err != nil {
		c.t.Fatal(err)
	}
	m.transport.direct = func(b []byte, from netip.Addr) {
		c.mu.Lock()
		take := c.taps[i]
		c.mu.Unlock()
		if take != nil {
			take(b, from)
		}
		m.receive(b, from)
	}
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx); close(done) }()
	if i < len(c.nodes) {
		c.nodes[i], c.stop[i], c.done[i] = m, cancel, done
		return
	}
	c.nodes, c.stop, c.done = append(c.nodes, m), append(c.stop, cancel), append(c.done, done)
}

func (c *cluster) listPeers() {
	var peers []Peer
	for i := range c.nodes {
		peers = append(peers, Peer{Name: name(i), Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::1"), c.addr(i)}})
	}
	for _, m := range c.nodes {
		m.SetPeers(peers)
	}
}

func (c *cluster) watchAll(i int) {
	var names []string
	for j := range c.nodes {
		if j != i {
			names = append(names, name(j))
		}
	}
	c.nodes[i].Watch(names)
}

// kill closes the agent's sockets without a goodbye.
func (c *cluster) kill(i int) {
	m := c.nodes[i]
	m.mu.Lock()
	m.crash = true
	m.mu.Unlock()
	c.stop[i]()
	if err := <-c.done[i]; err != nil {
		c.t.Fatal(err)
	}
}

// cut has two agents send each other's direct messages nowhere.
func (c *cluster) cut(i, j int) {
	for _, pair := range [][2]int{{i, j}, {j, i}} {
		m := c.nodes[pair[0]]
		m.mu.Lock()
		p := m.peer(name(pair[1]))
		p.listed = netip.AddrPortFrom(netip.MustParseAddr("127.9.9.9"), c.port)
		m.mu.Unlock()
	}
}

// hear has a peer answer a ping that has just left.
func hear(m *Members, name string) {
	m.mu.Lock()
	m.proved(m.peer(name), m.now(), m.now())
	m.mu.Unlock()
	m.update()
}

// alive returns the names that i holds alive.
func (c *cluster) alive(i int) []string {
	var out []string
	for n, m := range c.nodes[i].View() {
		if m.Alive() {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// eventually waits for a condition and returns the time it took.
func (c *cluster) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	return testkit.Eventually(c.t, limit, what, func() error {
		if ok() {
			return nil
		}
		var views strings.Builder
		for i := range c.nodes {
			fmt.Fprintf(&views, "\n%s sees %+v", name(i), c.nodes[i].View())
		}
		return errors.New(views.String())
	})
}

func (c *cluster) complete() {
	c.t.Helper()
	c.eventually(10*time.Second, "all see all", func() bool {
		for i := range c.nodes {
			if len(c.alive(i)) != len(c.nodes)-1 || !c.nodes[i].Joined() {
				return false
			}
		}
		return true
	})
}

func TestJoinAndFacts(t *testing.T) {
	c := newCluster(t, 3, false)
	c.complete()
	if err := c.nodes[0].SetInfo([]byte("eth0 up")); err != nil {
		t.Fatal(err)
	}
	c.eventually(time.Second, "the info arrives", func() bool {
		return string(c.nodes[1].View()[name(0)].Info) == "eth0 up" && string(c.nodes[2].View()[name(0)].Info) == "eth0 up"
	})
	// A node that comes later learns them as well.
	c.start(3, c.key)
	c.listPeers()
	c.complete()
	c.eventually(2*time.Second, "a late node gets the info", func() bool {
		return string(c.nodes[3].View()[name(0)].Info) == "eth0 up"
	})
	if err := c.nodes[0].SetInfo(make([]byte, MaxInfo+1)); err == nil {
		t.Error("accepted an info that is too long")
	}
}

func TestDeathOfAWatchedPeer(t *testing.T) {
	c := newCluster(t, 3, true)
	c.complete()
	c.kill(2)
	took := c.eventually(3*time.Second, "node-3 is dead to both", func() bool {
		return len(c.alive(0)) == 1 && len(c.alive(1)) == 1
	})
	t.Logf("found dead after %v", took)
	c.eventually(3*time.Second, "a second opinion", func() bool {
		c.nodes[0].mu.Lock()
		defer c.nodes[0].mu.Unlock()
		return c.nodes[0].peers[name(2)].secondOpinion(time.Now())
	})
	// The kernel at that address is alive: it refuses connections.
	time.Sleep(tcpProbeTimeout)
	if c.nodes[0].View()[name(2)].State == Unreachable {
		t.Error("the node counts as unreachable though only its agent is")
	}
	if diff := cmp.Diff([]string{name(1)}, c.alive(0)); diff != "" {
		t.Errorf("alive (-want +got):\n%s", diff)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.deaths, name(2)) {
		t.Errorf("deaths told: %v", c.deaths)
	}
}

func TestDeathOfAnUnwatchedPeer(t *testing.T) {
	c := newCluster(t, 3, false)
	c.complete()
	c.kill(2)
	took := c.eventually(6*time.Second, "node-3 is dead by gossip", func() bool {
		return len(c.alive(0)) == 1 && len(c.alive(1)) == 1
	})
	t.Logf("found dead after %v", took)
}

// TestRelayKeepsAlive: two peers that do not reach each other, but both reach a
// third, are alive to each other.
func TestRelayKeepsAlive(t *testing.T) {
	c := newCluster(t, 3, true)
	c.complete()
	c.cut(0, 1)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if len(c.alive(0)) != 2 || len(c.alive(1)) != 2 {
			t.Fatalf("node-1 sees %v, node-2 sees %v", c.alive(0), c.alive(1))
		}
	}
}

// TestUnreachable: a node none of whose kernel answers, by this node's TCP probe and
// another's word.
func TestUnreachable(t *testing.T) {
	m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}})
	unreachable := func() bool {
		m.update()
		return m.View()["p"].State == Unreachable
	}
	hear(m, "other")
	m.mu.Lock()
	p := m.peers["p"]
	p.noKernel = true
	p.nos["other"] = time.Now()
	m.mu.Unlock()
	if unreachable() {
		t.Error("a node that was never met is unreachable")
	}
	m.mu.Lock()
	p.wasAlive = true
	m.mu.Unlock()
	if !unreachable() {
		t.Error("not unreachable by TCP probe and second opinion")
	}
	m.mu.Lock()
	p.nos["other"] = time.Now().Add(-2 * opinionAge)
	m.mu.Unlock()
	if unreachable() {
		t.Error("unreachable on an opinion that is too old")
	}
	hear(m, "p")
	if unreachable() || !m.View()["p"].Alive() {
		t.Error("unreachable though it was heard")
	}
}

// TestNeverOnOneWord: of two nodes, neither calls the other unreachable.
func TestNeverOnOneWord(t *testing.T) {
	c := newCluster(t, 2, true)
	c.complete()
	c.kill(1)
	c.eventually(3*time.Second, "node-2 is dead", func() bool { return len(c.alive(0)) == 0 })
	time.Sleep(300 * time.Millisecond)
	if c.nodes[0].View()[name(1)].State == Unreachable {
		t.Error("unreachable on one node's word")
	}
}

func TestComesBack(t *testing.T) {
	c := newCluster(t, 3, true)
	c.complete()
	c.kill(2)
	c.eventually(3*time.Second, "node-3 is dead", func() bool { return len(c.alive(0)) == 1 && len(c.alive(1)) == 1 })
	c.stop[2]()
	<-c.done[2]
	c.start(2, c.key)
	c.listPeers()
	c.watchAll(2)
	c.complete()
}

func TestLeaveIsQuick(t *testing.T) {
	c := newCluster(t, 3, false)
	c.complete()
	c.stop[2]()
	if err := <-c.done[2]; err != nil {
		t.Fatalf("Run: %v", err)
	}
	// Directly heard of within directAge, then gone by gossip.
	c.eventually(2*time.Second, "node-3 has left", func() bool { return len(c.alive(0)) == 1 && len(c.alive(1)) == 1 })
}

func TestKeyRotation(t *testing.T) {
	c := newCluster(t, 0, false)
	old, next := bytes.Repeat([]byte{1}, KeyLength), bytes.Repeat([]byte{2}, KeyLength)
	for i := range 3 {
		c.start(i, old)
		c.nodes[i].cfg.Timing.KeyGrace = 300 * time.Millisecond
	}
	c.listPeers()
	c.complete()
	// One after the other, as a Secret reaches the nodes.
	for i := range c.nodes {
		if err := c.nodes[i].SetKeys(next, old); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.eventually(2*time.Second, "the new key is in use", func() bool {
		for _, m := range c.nodes {
			if !bytes.Equal(m.keyring.GetPrimaryKey(), next) {
				return false
			}
		}
		return true
	})
	for _, m := range c.nodes {
		if err := m.SetKeys(next); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually(2*time.Second, "the old key is forgotten", func() bool {
		return len(c.nodes[0].keyring.GetKeys()) == 1 && len(c.nodes[2].keyring.GetKeys()) == 1
	})
	c.complete()
}

func TestWrongKeyIsKeptOut(t *testing.T) {
	c := newCluster(t, 2, false)
	c.complete()
	c.start(2, bytes.Repeat([]byte{9}, KeyLength))
	c.listPeers()
	time.Sleep(time.Second)
	if got := c.alive(2); len(got) != 0 {
		t.Errorf("a node with another key sees %v", got)
	}
	if got := c.alive(0); len(got) != 1 {
		t.Errorf("node-1 sees %v", got)
	}
}

// TestStarvedProberHoldsNobodyDead: ticks that come late count as one interval.
func TestStarvedProberHoldsNobodyDead(t *testing.T) {
	m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	m.now = func() time.Time { return now }
	m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}})
	m.Watch([]string{"p"})
	hear(m, "p")
	interval := m.cfg.Timing.ProbeInterval
	now = now.Add(10 * time.Second) // stopped for ten seconds
	m.probe(now, min(10*time.Second, interval))
	m.update()
	if !m.View()["p"].Alive() {
		t.Fatal("dead after one late tick")
	}
	for range 3 {
		now = now.Add(interval)
		m.probe(now, interval)
	}
	m.update()
	if !m.View()["p"].Alive() {
		t.Fatal("dead below the limit")
	}
	now = now.Add(interval)
	m.probe(now, interval)
	m.update()
	if m.View()["p"].Alive() {
		t.Fatal("alive after the limit on time")
	}
}

// TestLimitFollowsRoundTrip: slow answers raise the limit, quick ones bring it
// back.
func TestLimitFollowsRoundTrip(t *testing.T) {
	p, timing, now := &peer{}, DefaultTiming(), time.Unix(1000, 0)
	near := func(got, want time.Duration) bool { return got >= want && got < want+20*time.Millisecond }
	answer := func(rtt time.Duration) { p.roundTrip(rtt) }
	answer(time.Millisecond)
	if got := p.limit(timing, 0); !near(got, timing.SilenceLimit) {
		t.Errorf("limit %v with quick answers", got)
	}
	answer(100 * time.Millisecond)
	if got := p.limit(timing, 0); !near(got, timing.SilenceLimit+180*time.Millisecond) {
		t.Errorf("limit %v after an answer in 100 ms", got)
	}
	answer(10 * time.Second)
	if got := p.limit(timing, 0); got != timing.MaxSilenceLimit {
		t.Errorf("limit %v, want the maximum", got)
	}
	for range 1500 {
		answer(time.Millisecond)
	}
	if got := p.limit(timing, 0); !near(got, timing.SilenceLimit) {
		t.Errorf("limit %v after many quick answers", got)
	}
	number := p.sending(now)
	if _, ok := p.isAnswer(number, now.Add(time.Hour)); ok {
		t.Error("took an answer to a ping of an hour ago")
	}
	if _, ok := p.isAnswer(number, now); !ok {
		t.Error("did not take an answer")
	}
	if _, ok := p.isAnswer(number, now); ok {
		t.Error("took an answer twice")
	}
	for range p.pings {
		p.sending(now)
	}
	if _, ok := p.isAnswer(number, now); ok {
		t.Error("took an answer to a forgotten ping")
	}
}

// TestQueuedPingsAreNoRoundTrip: what the kernel kept back while the link was cut
// does not make the peer count as slow.
func TestQueuedPingsAreNoRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name string
		away time.Duration
		slow bool
	}{
		{"cut off for long", 2 * time.Second, false},
		{"held dead wrongly", 200 * time.Millisecond, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Unix(1000, 0)
			m.now = func() time.Time { return now }
			m.Watch([]string{"p"})
			m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}})
			hear(m, "p")
			for m.View()["p"].Alive() {
				now = now.Add(m.cfg.Timing.ProbeInterval)
				m.probe(now, m.cfg.Timing.ProbeInterval)
				m.update()
			}
			now = now.Add(tc.away)
			p := m.peers["p"]
			last := p.pings[(p.slot+len(p.pings)-1)%len(p.pings)]
			m.mu.Lock()
			m.proved(p, last.at, now)
			m.mu.Unlock()
			if got := m.peers["p"].limit(m.cfg.Timing, 0) > m.cfg.Timing.SilenceLimit; got != tc.slow {
				t.Errorf("counts as slow: %v, want %v", got, tc.slow)
			}
		})
	}
}

// TestLimitFollowsLateness: of this process's timers, and of the peer's.
func TestLimitFollowsLateness(t *testing.T) {
	m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	timing := m.cfg.Timing
	m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}})
	hear(m, "p")
	m.handle(message{kind: ping, from: "p", body: []byte{0, 50}})
	p := m.peers["p"]
	if got, want := p.limit(timing, m.late), timing.SilenceLimit+40*lateWeight*time.Millisecond; got != want {
		t.Errorf("limit %v of a peer that is 50 ms late, want %v", got, want)
	}
	m.handle(message{kind: ping, from: "p", body: []byte{0, 0}})
	m.lag(25 * time.Millisecond)
	if got, want := p.limit(timing, m.late), timing.SilenceLimit+15*lateWeight*time.Millisecond; got != want {
		t.Errorf("limit %v where this process is 25 ms late, want %v", got, want)
	}
	if got := m.lateness(); !bytes.Equal(got, []byte{0, 25}) {
		t.Errorf("tells %x of itself", got)
	}
	if got, want := m.Slack(), 15*lateWeight*time.Millisecond; got != want {
		t.Errorf("slack %v, want %v", got, want)
	}
	for range 1500 {
		m.lag(-time.Millisecond)
	}
	if got := m.Slack(); got != 0 {
		t.Errorf("slack %v after many ticks on time", got)
	}
	if got := p.limit(timing, m.late); got > timing.SilenceLimit+time.Millisecond {
		t.Errorf("limit %v after many ticks on time", got)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []Config{{}, {Name: "a"}, {Bind: netip.MustParseAddrPort("127.0.0.1:1")}, {Name: "a", Bind: netip.MustParseAddrPort("0.0.0.0:1")}} {
		if _, err := New(c, nil); err == nil {
			t.Errorf("accepted %+v", c)
		}
	}
	m, err := New(Config{Name: "a", Bind: netip.MustParseAddrPort("127.0.0.1:0")}, nil)
	if err != nil || m.cfg.Bind.Port() != Port {
		t.Fatalf("%v, %v", m, err)
	}
	if m.SetKeys() == nil || m.SetKeys([]byte("short")) == nil {
		t.Error("accepted bad keys")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(message{kind: relay, number: 7, from: "a", target: "b"}.encode())
	f.Add(message{kind: infoPart, number: 7, from: "a", body: []byte("x")}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := decode(b)
		if !ok {
			return
		}
		if !bytes.Equal(m.encode(), b) {
			t.Fatalf("%x became %x", b, m.encode())
		}
	})
}

// fakeEcho answers for the kernels that are on.
type fakeEcho struct {
	on      map[netip.Addr]bool
	pending []netip.Addr
}

func (f *fakeEcho) ask(to netip.Addr) {
	if f.on[to] {
		f.pending = append(f.pending, to)
	}
}

func (f *fakeEcho) answered() []netip.Addr {
	out := f.pending
	f.pending = nil
	return out
}

// TestSilence: how long a silent peer has, by what its kernel does and by how busy
// the cores are.
func TestSilence(t *testing.T) {
	timing := DefaultTiming()
	for _, tc := range []struct {
		name           string
		before, after  bool // whether the kernel answers echoes
		late           time.Duration
		least, most    time.Duration
		hostAnswers    bool
		answersInstead bool // the agent goes on answering
	}{
		{"node dead", true, false, 0, timing.SilenceLimit, timing.SilenceLimit + timing.ProbeInterval, false, false},
		{"node dead, cores busy", true, false, 60 * time.Millisecond, timing.SilenceLimit, timing.SilenceLimit + timing.ProbeInterval, false, false},
		{"agent dead", true, true, 0, timing.AgentSilenceLimit, timing.AgentSilenceLimit + timing.ProbeInterval, true, false},
		{"agent dead, cores busy", true, true, 60 * time.Millisecond, timing.AgentSilenceLimit + 200*time.Millisecond, timing.MaxSilenceLimit + timing.ProbeInterval, true, false},
		{"node dead that never answered echoes", false, false, 0, timing.SilenceLimit, timing.SilenceLimit + timing.ProbeInterval, false, false},
		{"node dead that never answered echoes, cores busy", false, false, 60 * time.Millisecond, timing.SilenceLimit + 200*time.Millisecond, timing.MaxSilenceLimit + timing.ProbeInterval, false, false},
		{"echoes filtered from now on", true, false, 0, time.Hour, time.Hour, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := netip.MustParseAddr("127.9.0.2")
			m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Unix(1000, 0)
			kernel := &fakeEcho{on: map[netip.Addr]bool{addr: tc.before}}
			m.now, m.echo = func() time.Time { return now }, kernel
			m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{addr}}})
			m.Watch([]string{"p"})
			tick := func() {
				now = now.Add(timing.ProbeInterval)
				m.probe(now, timing.ProbeInterval)
				m.update()
			}
			for range 100 {
				tick()
				hear(m, "p")
			}
			m.late = tc.late
			kernel.on[addr] = tc.after
			start := now
			for m.View()["p"].Alive() && now.Sub(start) < 5*time.Second {
				tick()
				m.late = tc.late
				if tc.answersInstead {
					hear(m, "p")
				}
			}
			got := m.View()["p"]
			if tc.answersInstead {
				if !got.Alive() {
					t.Fatalf("dead after %v though it answers", now.Sub(start))
				}
				return
			}
			if took := now.Sub(start); took < tc.least || took > tc.most {
				t.Errorf("dead after %v, want %v to %v", took, tc.least, tc.most)
			}
			if (got.State == HostAnswers) != tc.hostAnswers {
				t.Errorf("state %v, want that the host answers: %v", got.State, tc.hostAnswers)
			}
			if want := tc.before && !tc.after; (got.State == HostSilent) != want {
				t.Errorf("state %v, want a silent host: %v", got.State, want)
			}
			// The kernel dies as well: whoever was quiet about it has to be told.
			select {
			case <-m.Changed():
			default:
			}
			kernel.on[addr] = false
			for range 20 {
				tick()
			}
			if m.View()["p"].State == HostAnswers {
				t.Error("host answers though its kernel is silent")
			}
			if tc.hostAnswers {
				select {
				case <-m.Changed():
				default:
					t.Error("a change of HostAnswers was not told")
				}
			}
		})
	}
}

// TestEcho: the kernel answers for its own addresses.
func TestEcho(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") != "1" {
		t.Skip("raw sockets need CAP_NET_RAW; set REQUIRE_KERNEL=1 to fail instead")
	}
	for _, self := range []string{"127.9.0.1", "::1"} {
		addr := netip.MustParseAddr(self)
		e, err := openEchoer(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer e.close()
		if got := e.answered(); len(got) != 0 {
			t.Errorf("answers from %v before any request", got)
		}
		e.ask(addr)
		e.ask(addr)
		if diff := cmp.Diff([]netip.Addr{addr, addr}, e.answered(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("answers on the loopback, where they are there at once (-want +got):\n%s", diff)
		}
		e.id++ // as another program's would be
		e.ask(addr)
		if got := e.answered(); len(got) != 0 {
			t.Errorf("took an answer to another program from %v", got)
		}
	}
}
