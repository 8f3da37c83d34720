// SPDX-License-Identifier: Apache-2.0

package members

import (
	"bytes"
	"context"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// TestRecordedPackets: what a node was sent is recorded and sent to it again, from
// where it came and from elsewhere, when one of the senders is dead. It keeps no node
// alive and changes nothing.
func TestRecordedPackets(t *testing.T) {
	c := newCluster(t, 3, true)
	var mu sync.Mutex
	type packet struct {
		b    []byte
		from netip.Addr
	}
	var recorded []packet
	m := c.nodes[0]
	c.tap(0, func(b []byte, from netip.Addr) {
		mu.Lock()
		defer mu.Unlock()
		recorded = append(recorded, packet{bytes.Clone(b), from})
	})
	c.complete()
	if err := c.nodes[2].SetInfo([]byte("first")); err != nil {
		t.Fatal(err)
	}
	told := func(want string) func() bool {
		return func() bool { return string(m.View()[name(2)].Info) == want }
	}
	c.eventually(2*time.Second, "the info arrives", told("first"))
	if err := c.nodes[2].SetInfo([]byte("second")); err != nil {
		t.Fatal(err)
	}
	c.eventually(2*time.Second, "the info arrives", told("second"))
	time.Sleep(300 * time.Millisecond)
	c.kill(2)
	c.eventually(3*time.Second, "node-3 is dead", func() bool { return len(c.alive(0)) == 1 })
	mu.Lock()
	old := slices.Clone(recorded)
	mu.Unlock()
	if len(old) < 10 {
		t.Fatalf("%d packets were recorded", len(old))
	}
	for range 5 {
		for _, p := range old {
			m.receive(p.b, p.from)
			m.receive(p.b, c.addr(1))
		}
		if slices.Contains(c.alive(0), name(2)) {
			t.Fatal("recorded packets keep a dead node alive")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !told("second")() {
		t.Errorf("recorded packets changed the info to %q", m.View()[name(2)].Info)
	}
}

// TestHearsay: what gossip says of a node makes it be asked, and nothing else.
func TestHearsay(t *testing.T) {
	c := newCluster(t, 3, false)
	c.complete()
	m := c.nodes[0]
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		m.gossiped(&memberlist.Node{Name: name(2)}, false)
		if len(c.alive(0)) != 2 {
			t.Fatal("gossip's word killed a node that answers")
		}
	}
	c.kill(2)
	c.eventually(10*time.Second, "node-3 is dead", func() bool { return len(c.alive(0)) == 1 })
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		m.gossiped(&memberlist.Node{Name: name(2), Meta: bytes.Repeat([]byte{0xff}, 20)}, true)
		if len(c.alive(0)) != 1 {
			t.Fatal("gossip's word revived a node that does not answer")
		}
	}
}

// forge makes a packet in the name of from to to, by a holder of the gossip key
// and knows from's boot.
func forge(t *testing.T, c *cluster, from, to int, boot, number uint64, k kind, body []byte) []byte {
	t.Helper()
	var nobody *Identity
	secret := nobody.secret(c.key, nil, name(from), name(to))
	h := header{nodeinfo.IDOf(name(from)), nodeinfo.IDOf(name(to)), boot, number}
	head := h.encode()
	return directKey(secret, h.from, h.to, boot).Seal(head, nonce(number), append([]byte{byte(k)}, body...), head)
}

// TestGreatestNumber: with the gossip key one message with the greatest number is
// sent in another's name. It does not stick; with keys of their own it is not taken
// at all.
func TestGreatestNumber(t *testing.T) {
	for _, bound := range []bool{false, true} {
		t.Run(map[bool]string{false: "gossip key alone", true: "own keys"}[bound], func(t *testing.T) {
			c := newCluster(t, 2, true)
			if bound {
				c.identify()
			}
			c.complete()
			if err := c.nodes[1].SetInfo([]byte("true")); err != nil {
				t.Fatal(err)
			}
			told := func() bool { return string(c.nodes[0].View()[name(1)].Info) == "true" }
			c.eventually(2*time.Second, "the info arrives", told)
			body := part{version: math.MaxUint64, total: 5, bytes: []byte("false")}.encode()
			c.nodes[0].receive(forge(t, c, 1, 0, c.nodes[1].boot, math.MaxUint64, infoPart, body), c.addr(1))
			if bound && !told() {
				t.Error("a forged message was taken")
			}
			old := message{kind: infoPart, number: math.MaxUint64, from: name(1), body: []byte("false")}
			c.nodes[0].handle(old)
			c.eventually(2*time.Second, "the truth is back", told)
			if err := c.nodes[1].SetInfo([]byte("newer")); err != nil {
				t.Fatal(err)
			}
			c.eventually(2*time.Second, "what is said later counts", func() bool {
				return string(c.nodes[0].View()[name(1)].Info) == "newer"
			})
			if len(c.alive(0)) != 1 {
				t.Error("dead to node-1")
			}
		})
	}
}

// identify returns every node a key of its own, which all know.
func (c *cluster) identify() {
	public := map[string][]byte{}
	ids := make([]*Identity, len(c.nodes))
	for i := range c.nodes {
		id, err := NewIdentity()
		if err != nil {
			c.t.Fatal(err)
		}
		ids[i], public[name(i)] = id, id.Public()
	}
	for i, m := range c.nodes {
		m.SetIdentities(ids[i], public)
	}
}

// TestSpokenFor: a node that has the gossip key and its own key pair says that it is
// another one, at that one's address, while that one is dead. Nobody believes it.
func TestSpokenFor(t *testing.T) {
	c := newCluster(t, 3, true)
	c.identify()
	c.complete()
	c.kill(2)
	c.eventually(3*time.Second, "node-3 is dead", func() bool { return len(c.alive(0)) == 1 && len(c.alive(1)) == 1 })
	c.stop[2]()
	<-c.done[2]
	public := map[string][]byte{name(0): c.nodes[0].identity.Public(), name(1): c.nodes[1].identity.Public()}
	c.start(2, c.key) // in node-3's name
	evil, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	c.nodes[2].SetIdentities(evil, public)
	c.listPeersOf(2)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(c.alive(0)) != 1 || len(c.alive(1)) != 1 {
			t.Fatal("another speaks for node-3")
		}
	}
}

// TestNewestStart: the info of a process that has just started counts, whatever the
// one before it has said.
func TestNewestStart(t *testing.T) {
	c := newCluster(t, 2, true)
	c.complete()
	for range 1000 {
		if err := c.nodes[1].SetInfo([]byte(time.Now().String())); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.nodes[1].SetInfo([]byte("leaving")); err != nil {
		t.Fatal(err)
	}
	c.eventually(3*time.Second, "the info arrives", func() bool { return string(c.nodes[0].View()[name(1)].Info) == "leaving" })
	c.kill(1)
	c.start(1, c.key)
	if err := c.nodes[1].SetInfo([]byte("back")); err != nil {
		t.Fatal(err)
	}
	c.listPeers()
	c.watchAll(1)
	c.eventually(3*time.Second, "the new info counts", func() bool {
		v := c.nodes[0].View()[name(1)]
		return v.Alive() && string(v.Info) == "back"
	})
}

func TestLargeFacts(t *testing.T) {
	c := newCluster(t, 3, true)
	c.complete()
	for _, size := range []int{MaxInfo, 1, partLength, partLength + 1, 0, 5000} {
		want := bytes.Repeat([]byte{byte(size)}, size)
		if err := c.nodes[0].SetInfo(want); err != nil {
			t.Fatal(err)
		}
		c.eventually(5*time.Second, "the info arrives", func() bool {
			for _, m := range c.nodes[1:] {
				if f := m.View()[name(0)].Info; f == nil || !bytes.Equal(f, want) {
					return false
				}
			}
			return true
		})
	}
}

// TestWithoutGossip: a death of which gossip does not tell is found.
func TestWithoutGossip(t *testing.T) {
	m, err := New(Config{Name: "me", Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	m.now = func() time.Time { return now }
	m.SetPeers([]Peer{{Name: "p", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}})
	hear(m, "p")
	start := now
	for m.View()["p"].Alive() {
		now = now.Add(m.cfg.Timing.ProbeInterval)
		m.probe(now, m.cfg.Timing.ProbeInterval)
		m.update()
		if now.Sub(start) > 10*time.Second {
			t.Fatal("a silent peer that nobody watches is alive")
		}
	}
}

// TestFamilies: nodes reach each other by a family that both have, and say so where
// there is none.
func TestFamilies(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")
	for _, tc := range []struct {
		name      string
		bind      string
		own, peer []netip.Addr
		want      netip.Addr
	}{
		{"same", "192.0.2.1", nil, []netip.Addr{four}, four},
		{"first of the peer's is another", "192.0.2.1", nil, []netip.Addr{six, four}, four},
		{"by this node's second", "192.0.2.1", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, []netip.Addr{six}, six},
		{"by this node's second IPv4", "2001:db8::1", []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")}, []netip.Addr{four}, four},
		{"none shared", "192.0.2.1", nil, []netip.Addr{six}, netip.Addr{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := New(Config{Name: "me", Bind: netip.AddrPortFrom(netip.MustParseAddr(tc.bind), 0)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			m.SetPeers([]Peer{{Name: "p", Addresses: tc.peer}, {Name: "me", Addresses: tc.own}})
			if got := m.peers["p"].addr().Addr(); got != tc.want {
				t.Errorf("reached at %v, want %v", got, tc.want)
			}
			if got := m.View()["p"].Apart; got == tc.want.IsValid() {
				t.Errorf("apart: %v", got)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	var w window
	for _, step := range []struct {
		number uint64
		want   bool
	}{{5, true}, {5, false}, {3, true}, {3, false}, {70, true}, {6, false}, {7, true}, {7, false}, {1000, true}, {70, false}} {
		if got := w.take(step.number); got != step.want {
			t.Errorf("%d: %v, want %v", step.number, got, step.want)
		}
	}
}

// TestConnectionsOfOtherHosts: a host that is no node is not served, and a node only so many
// connections of so many bytes.
func TestConnectionsOfOtherHosts(t *testing.T) {
	tr := newTransport(uint16(20000+time.Now().UnixNano()%20000), func([]byte, netip.Addr) {})
	self, node, strange := netip.MustParseAddr("127.9.1.1"), netip.MustParseAddr("127.9.1.2"), netip.MustParseAddr("127.9.1.3")
	if err := tr.bind(self); err != nil {
		t.Fatal(err)
	}
	tr.know(map[string]netip.AddrPort{"node": netip.AddrPortFrom(node, tr.port)}, []netip.Addr{node})
	defer tr.Shutdown()
	dial := func(from netip.Addr) net.Conn {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: time.Second}
		c, err := d.DialContext(context.Background(), "tcp", netip.AddrPortFrom(self, tr.port).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	closed := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := c.Read(make([]byte, 1))
		var timeout net.Error
		return err != nil && !(asTimeout(err, &timeout))
	}
	if !closed(dial(strange)) {
		t.Error("a stranger's connection stays open")
	}
	c := dial(node)
	var s net.Conn
	select {
	case s = <-tr.StreamCh():
	case <-time.After(5 * time.Second):
		t.Fatal("a node's connection is not taken")
	}
	go func() {
		b := make([]byte, 1<<20)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	total := 0
	for b := make([]byte, 1<<20); ; {
		n, err := s.Read(b)
		total += n
		if err != nil {
			break
		}
	}
	if total > streamBase+streamPerNode {
		t.Errorf("%d bytes were read of one connection", total)
	}
	s.Close()
	for range maxStreamsSource {
		dial(node)
		<-tr.StreamCh()
	}
	if !closed(dial(node)) {
		t.Error("a node has more connections than it may")
	}
}

func asTimeout(err error, target *net.Error) bool {
	e, ok := err.(net.Error)
	*target = e
	return ok && e.Timeout()
}

func FuzzReceive(f *testing.F) {
	node := func(name string) *Members {
		m, err := New(Config{Name: name, Bind: netip.MustParseAddrPort("127.9.0.1:0")}, nil)
		if err != nil {
			f.Fatal(err)
		}
		if err := m.SetKeys(bytes.Repeat([]byte{7}, KeyLength)); err != nil {
			f.Fatal(err)
		}
		m.SetPeers([]Peer{{Name: "a", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.2")}}, {Name: "b", Addresses: []netip.Addr{netip.MustParseAddr("127.9.0.3")}}})
		return m
	}
	a, b := node("a"), node("b")
	for _, k := range []kind{ping, ack, no, infoPart, carry} {
		f.Add(byte(k), a.seal(a.peers["b"], k, status{nonce: 1}.encode()))
		f.Add(byte(k), status{nonce: 1}.encode())
		f.Add(byte(k), part{version: 1, total: 3, bytes: []byte("abc")}.encode())
	}
	from := netip.MustParseAddr("127.9.0.2")
	f.Fuzz(func(t *testing.T, k byte, body []byte) {
		b.receive(body, from) // as it is
		b.mu.Lock()
		b.peers["a"].boot = a.boot
		b.mu.Unlock()
		a.mu.Lock()
		sealed := a.seal(a.peers["b"], kind(k), body)
		a.mu.Unlock()
		b.receive(sealed, from) // well sealed
		if s, ok := decodeStatus(body); ok && !bytes.Equal(s.encode(), body[:statusLength]) {
			t.Errorf("%x became %x", body, s.encode())
		}
		if p, ok := decodePart(body); ok && !bytes.Equal(p.encode(), body) {
			t.Errorf("%x became %x", body, p.encode())
		}
		if v := b.View()["a"]; v.Alive() {
			t.Error("alive without an answer to a ping")
		}
	})
}

// A packet of 5,000 nodes costs no more than one of two.
func BenchmarkPacket(b *testing.B) {
	id, err := NewIdentity()
	if err != nil {
		b.Fatal(err)
	}
	other, err := NewIdentity()
	if err != nil {
		b.Fatal(err)
	}
	secret := id.secret([]byte("gossip"), other.Public(), "a", "b")
	aead := directKey(secret, nodeinfo.IDOf("a"), nodeinfo.IDOf("b"), 1)
	h := header{nodeinfo.IDOf("a"), nodeinfo.IDOf("b"), 1, 1}.encode()
	body := append([]byte{byte(ping)}, status{}.encode()...)
	sealed := aead.Seal(nil, nonce(1), body, h)
	b.Run("seal", func(b *testing.B) {
		for b.Loop() {
			aead.Seal(nil, nonce(1), body, h)
		}
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			if _, err := aead.Open(nil, nonce(1), sealed, h); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("secret of two nodes, once for each start", func(b *testing.B) {
		for b.Loop() {
			id.secret([]byte("gossip"), other.Public(), "a", "b")
		}
	})
}

// TestBackToFormer: a node whose key was deleted may come back with an agent of a
// former version, which knows no other format than that one's: it is heard, and what
// it tells counts, whenever the key was deleted. A running agent that is still of this
// version stays alive and its info stays known all the time.
func TestBackToFormer(t *testing.T) {
	for _, deadBefore := range []bool{false, true} {
		t.Run(map[bool]string{false: "deleted while it lives", true: "deleted when it is dead"}[deadBefore], func(t *testing.T) {
			c := newCluster(t, 2, true)
			c.identify()
			c.complete()
			if err := c.nodes[1].SetInfo([]byte("present")); err != nil {
				t.Fatal(err)
			}
			m := c.nodes[0]
			told := func() string { return string(m.View()[name(1)].Info) }
			c.eventually(2*time.Second, "the info arrives", func() bool { return told() == "present" })
			secure := func() bool {
				m.mu.Lock()
				defer m.mu.Unlock()
				return m.peers[name(1)].secure
			}
			forget := func() {
				for _, n := range c.nodes {
					n.SetIdentities(n.identity, nil)
				}
			}
			answer := func() { // every ping, as the former version does
				m.mu.Lock()
				pings := m.peers[name(1)].pings
				m.mu.Unlock()
				for _, p := range pings {
					if p.number != 0 {
						m.handle(message{kind: ack, number: p.number, from: name(1), body: []byte{0, 0}})
					}
				}
			}
			if !deadBefore {
				forget()
				c.eventually(2*time.Second, "it is spoken to in the present format again", func() bool {
					if len(c.alive(0)) != 1 || told() != "present" {
						t.Fatalf("alive: %v, info %q", c.alive(0), told())
					}
					return secure()
				})
			}
			c.kill(1)
			c.eventually(3*time.Second, "node-2 is dead", func() bool { return len(c.alive(0)) == 0 })
			if deadBefore {
				if answer(); len(c.alive(0)) != 0 {
					t.Fatal("it is heard in the former format though it has a key")
				}
				forget()
			}
			c.eventually(2*time.Second, "it is heard in the former format", func() bool { answer(); return len(c.alive(0)) == 1 })
			m.handle(message{kind: infoPart, number: 1, from: name(1), body: []byte("former")})
			c.eventually(2*time.Second, "what it tells counts", func() bool { return told() == "former" })
		})
	}
}
