// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// fakeConn records what is sent.
type fakeConn struct {
	sent      []string
	answering map[netip.Addr]bool
	unread    bool
	deleted   bool // its interface
	broken    bool // nothing can be sent
}

func (c *fakeConn) say(what string, a netip.Addr, rest ...any) error {
	if c.deleted || c.broken {
		return errors.New("no such device")
	}
	c.sent = append(c.sent, strings.TrimSpace(what+" "+a.String()+" "+fmt.Sprint(rest...)))
	return nil
}

func (c *fakeConn) Listen(_, _ []netip.Addr) error        { return nil }
func (c *fakeConn) Answer(a netip.Addr, on bool)          { c.answering[a] = on }
func (c *fakeConn) Probe(a netip.Addr, to wire.MAC) error { return c.say("probe", a, to) }
func (c *fakeConn) Question(a, asker netip.Addr) error    { return c.say("question", a) }
func (c *fakeConn) Announce(a netip.Addr) error           { return c.say("announce", a) }
func (c *fakeConn) Remind(a netip.Addr) error             { return c.say("remind", a) }
func (c *fakeConn) Tell(a netip.Addr, to wire.MAC) error  { return c.say("tell", a, to) }
func (c *fakeConn) Unread() bool                          { return c.unread }
func (c *fakeConn) Bound() bool                           { return !c.deleted }
func (c *fakeConn) Counters() wire.Counters               { return wire.Counters{} }

// take returns what was sent since the last call.
func (c *fakeConn) take() []string { defer func() { c.sent = nil }(); return c.sent }

// fakeMembership is one without load.
type fakeMembership struct {
	Membership
	stalled map[string]bool
}

func (m fakeMembership) Slack() time.Duration     { return 0 }
func (m fakeMembership) Stalled(node string) bool { return m.stalled[node] }
func (m fakeMembership) Probes() bool             { return true }

// fakeAuth takes the last byte of a hardware address for the number of its node, and
// every frame for an answer unless its seal is set.
type fakeAuth struct{}

func (fakeAuth) know(map[string]bool) {}
func (fakeAuth) sender(m wire.Message, _ wire.MAC, _ func(string, wire.MAC) []wire.MAC) (string, verification) {
	if m.From[5] == 0xff {
		return "", foreign
	}
	if !m.Seal.IsZero() {
		return fmt.Sprintf("node-%d", m.From[5]), unverified
	}
	return fmt.Sprintf("node-%d", m.From[5]), verified
}

func mac(node byte) wire.MAC { return wire.MAC{2, 0, 0, 0, 0, node} }

// bench is an Announcer of node-1 on a LAN whose other hosts the test plays.
type bench struct {
	*Announcer
	t    *testing.T
	now  time.Time
	conn *fakeConn
	port *port

	received uint64                     // frames on the interface
	hearing  map[string]elect.Reception // of the other nodes
}

const self = "node-1"

var (
	vip   = netip.MustParseAddr("192.0.2.200")
	iface = elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}
)

func newBench(t *testing.T) *bench {
	b := &bench{t: t, now: time.Unix(1000, 0)}
	b.Announcer = newAnnouncer(self, fakeMembership{}, Config{Metrics: NewMetrics(nil)}, logr.Discard())
	b.auth = fakeAuth{}
	b.ports.open = func(now time.Time, key portKey, name string) (*port, error) {
		b.conn = &fakeConn{answering: map[netip.Addr]bool{}}
		b.port = newPort(now, key, name)
		b.port.conn, b.port.stop = b.conn, func() {}
		b.port.received = func() (uint64, bool) { return b.received, true }
		return b.port, nil
	}
	return b
}

// elect applies an election of the nodes ranks, which the first has won.
func (b *bench) elect(ranks ...string) {
	b.t.Helper()
	lan := links.Link{Interface: iface, Index: 2, MAC: mac(1), Own: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}
	d := &announce.Desired{
		InternalIPs: map[string][]netip.Addr{}, Members: map[string]members.Member{}, Infos: map[string]nodeinfo.Info{},
		Links: []links.Link{lan}, Relevant: []links.Link{lan},
		Advertisements: []announce.Advertisement{{Address: elect.Address{Addr: vip, Pool: &elect.Pool{}}, Result: elect.Result{Announcer: ranks[0], Ranks: ranks}}},
	}
	for i := range byte(3) {
		name := fmt.Sprintf("node-%d", i+1)
		if name != self && !slices.Contains(ranks, name) {
			continue
		}
		d.Nodes = append(d.Nodes, elect.Node{Name: name, Alive: true, InSync: true, Interfaces: []elect.Interface{iface}})
		d.InternalIPs[name] = []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 11 + i})}
		if name != self {
			d.Members[name] = members.Member{Name: name, State: members.Alive, Since: b.now.Add(-time.Hour)}
			k := iface
			k.Reception = b.hearing[name]
			d.Infos[name] = nodeinfo.Info{InSync: true, Interfaces: []nodeinfo.Interface{{Interface: k, MAC: mac(i + 1)}}}
		}
	}
	b.Apply(b.now, d)
	b.Step(b.now)
}

// pass lets time pass as the Speaker's goroutine would.
func (b *bench) pass(d time.Duration) {
	for end := b.now.Add(d); ; {
		next := b.now.Add(max(b.Next(b.now), time.Microsecond))
		if next.After(end) {
			b.now = end
			return
		}
		b.now = next
		b.Step(b.now)
	}
}

// hear is an advertisement of a node.
func (b *bench) hear(node byte, hint bool) {
	m := wire.Message{Kind: wire.Advertisement, Address: vip, From: mac(node), To: mac(1)}
	if hint {
		m.Seal[0] = 1
	}
	b.received++
	b.heard <- heard{b.port, m}
	b.Step(b.now)
}

func (b *bench) report() announce.Report {
	b.t.Helper()
	for _, r := range b.Reports(b.now) {
		if r.Address == vip {
			return r
		}
	}
	return announce.Report{}
}

// TestAnnouncerTakesAddress: the link is asked first; silence gives the address to
// this node; what becomes of it is reported.
func TestAnnouncerTakesAddress(t *testing.T) {
	b := newBench(t)
	b.elect(self, "node-2")
	if sent := b.conn.take(); !slices.Contains(sent, "probe 192.0.2.200 00:00:00:00:00:00") || b.conn.answering[vip] {
		t.Fatalf("sent %q, answering %v: want a probe before anything else", sent, b.conn.answering[vip])
	}
	b.pass(time.Second)
	r := b.report()
	if !b.conn.answering[vip] || b.Active() != 1 || r.State != announce.Announced || r.Interface != "eth0" {
		t.Fatalf("answering %v, %d active, %+v", b.conn.answering[vip], b.Active(), r)
	}
	b.conn.take()
	b.elect("node-2", self)
	b.pass(500 * time.Millisecond)
	if b.Active() != 1 {
		t.Error("stopped before the successor was heard")
	}
	b.hear(2, false)
	if r := b.report(); b.Active() != 0 || b.conn.answering[vip] || r.State != announce.Released {
		t.Errorf("%d active, answering %v, %+v after the successor was heard", b.Active(), b.conn.answering[vip], r)
	}
}

// TestAnnouncerLeavesAddressToConflictingHost: it is reported with the node that has
// the hardware address, if one has.
func TestAnnouncerLeavesAddressToConflictingHost(t *testing.T) {
	b := newBench(t)
	b.elect(self, "node-2")
	b.hear(0xff, false)
	want := announce.Report{Address: vip, State: announce.Conflicted, Interface: "eth0", ConflictingHost: mac(0xff)}
	if diff := cmp.Diff(want, b.report(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestAnnouncerReopensPort: an interface that was deleted and made again has another
// socket within two seconds, and the address is announced there.
func TestAnnouncerReopensPort(t *testing.T) {
	b := newBench(t)
	b.elect(self)
	b.pass(time.Second)
	old := b.conn
	old.deleted = true
	b.pass(2 * time.Second)
	if b.conn == old || !b.conn.answering[vip] {
		t.Error("the old socket is used still")
	}
}

// TestLiveness: a node that is elected and does not answer on the link is replaced
// there, and gets the address back once it has answered a question, not before.
func TestLiveness(t *testing.T) {
	b := newBench(t)
	b.elect("node-2", self)
	b.hear(2, false)
	b.pass(probeInterval)
	if sent := b.conn.take(); !slices.Contains(sent, "probe 192.0.2.200 "+mac(2).String()) {
		t.Fatalf("the announcer is not asked: %q", sent)
	}
	b.pass(probeInterval + (maxMissed+1)*probeTick)
	if _, gone := b.port.peers.unreachable["node-2"]; !gone {
		t.Fatal("reachable though it does not answer")
	}
	b.pass(300 * time.Millisecond)
	if r := b.report(); r.State != announce.Announced || r.Unreachable != "node-2" {
		t.Fatalf("%+v: want that this node announces for node-2", r)
	}
	b.conn.take()
	b.hear(2, true)
	if _, gone := b.port.peers.unreachable["node-2"]; !gone {
		t.Error("reachable by a hint alone")
	}
	if sent := b.conn.take(); !slices.Contains(sent, "probe 192.0.2.200 "+mac(2).String()) {
		t.Errorf("a hint is not followed by a question: %q", sent)
	}
	b.hear(2, false)
	if _, gone := b.port.peers.unreachable["node-2"]; gone {
		t.Error("unreachable though it has answered")
	}
}

// TestDeaf: a node that receives no frame while other nodes hear each other leaves the
// announcer its address, says that it is silent, and asks on. In every other case the
// announcer that does not answer is replaced.
func TestDeaf(t *testing.T) {
	const detected = 2*probeInterval + (maxMissed+2)*probeTick
	hearing := func(nodes ...string) map[string]elect.Reception {
		out := map[string]elect.Reception{}
		for _, n := range nodes {
			out[n] = elect.Hearing
		}
		return out
	}
	for _, tc := range []struct {
		name    string
		hearing map[string]elect.Reception
		ranks   []string
		frames  bool // of other hosts come in
		unknown bool // how many, too
		taken   bool
	}{
		{name: "a third node hears", hearing: hearing("node-3"), ranks: []string{"node-2", self, "node-3"}},
		{name: "both others hear", hearing: hearing("node-2", "node-3"), ranks: []string{"node-2", self, "node-3"}},
		{name: "the announcer hears, perhaps this node", hearing: hearing("node-2"), ranks: []string{"node-2", self, "node-3"}, taken: true},
		{name: "two nodes", hearing: hearing("node-2"), ranks: []string{"node-2", self}, taken: true},
		{name: "none hears: the switch is down", ranks: []string{"node-2", self, "node-3"}, taken: true},
		{name: "all are silent", hearing: map[string]elect.Reception{"node-2": elect.Silent, "node-3": elect.Silent}, ranks: []string{"node-2", self, "node-3"}, taken: true},
		{name: "frames of other hosts come in", hearing: hearing("node-3"), ranks: []string{"node-2", self, "node-3"}, frames: true, taken: true},
		{name: "frames are not counted", hearing: hearing("node-3"), ranks: []string{"node-2", self, "node-3"}, unknown: true, taken: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			b.hearing = tc.hearing
			b.elect(tc.ranks...)
			if tc.unknown {
				b.port.received = func() (uint64, bool) { return 0, false }
			}
			b.hear(2, false)
			for range (detected + silenceTime + time.Second) / probeTick {
				b.pass(probeTick)
				if tc.frames {
					b.received++
				}
			}
			if taken := b.Active() == 1; taken != tc.taken {
				t.Errorf("taken over %v, want %v", taken, tc.taken)
			}
			if silent := b.Receptions()[2] == elect.Silent; silent == (tc.frames || tc.unknown) {
				t.Errorf("reception %v", b.Receptions())
			}
		})
	}
	deaf := func(t *testing.T) *bench {
		b := newBench(t)
		b.hearing = hearing("node-3")
		b.elect("node-2", self, "node-3")
		b.hear(2, false)
		b.pass(detected + silenceTime)
		if got := b.Receptions()[2]; b.Active() != 0 || got != elect.Silent {
			t.Fatalf("%d active, reception %d, want silent", b.Active(), got)
		}
		b.elect("node-2", "node-3") // all nodes leave it out
		b.conn.take()
		b.pass(2 * unreachableInterval)
		if sent := b.conn.take(); !slices.Contains(sent, "probe 192.0.2.200 00:00:00:00:00:00") || len(sent) > 12 {
			t.Errorf("asks on with %q", sent)
		}
		return b
	}
	t.Run("mended", func(t *testing.T) {
		b := deaf(t)
		b.hear(2, false)
		b.pass(2 * probeTick)
		if got := b.Receptions()[2]; got == elect.Silent {
			t.Error("still silent")
		}
		b.elect("node-2", self, "node-3")
		b.pass(probeInterval)
		b.hear(2, false)
		if _, gone := b.port.peers.unreachable["node-2"]; gone || b.Active() != 0 {
			t.Error("does not leave the address to the node that answers")
		}
	})
	t.Run("cut off with clients", func(t *testing.T) {
		b := deaf(t)
		b.received++ // one asks
		b.pass(2 * probeTick)
		if got := b.Receptions()[2]; got == elect.Silent {
			t.Fatal("still silent")
		}
		b.elect("node-2", self, "node-3")
		for range 40 {
			b.received++
			b.pass(probeTick)
		}
		if b.Active() != 1 {
			t.Error("does not take the address over for them")
		}
	})
	t.Run("the others fall silent too", func(t *testing.T) {
		b := deaf(t)
		b.hearing = nil
		b.elect("node-2", self, "node-3")
		b.pass(time.Second)
		if b.Active() != 1 {
			t.Error("does not take the address over")
		}
	})
}

// TestHearing: a successor says that it hears others for as long as one answers it.
func TestHearing(t *testing.T) {
	b := newBench(t)
	b.elect("node-2", self, "node-3")
	b.hear(2, true)
	b.pass(probeTick)
	if got := b.Receptions()[2]; got != elect.Untested {
		t.Errorf("reception %d by a hint alone", got)
	}
	b.hear(2, false)
	b.pass(2 * probeTick)
	if got := b.Receptions()[2]; got != elect.Hearing {
		t.Errorf("reception %d after an answer, want hearing", got)
	}
	for range 20 {
		b.received++
		b.pass(probeTick)
	}
	if got := b.Receptions()[2]; got != elect.Untested {
		t.Errorf("reception %d though no node answers", got)
	}
}

// TestLivenessGivesTime: nothing is held against a node while frames are unread, while
// membership is about to find it dead, or before it can have taken the address.
func TestLivenessGivesTime(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*bench)
		wait  time.Duration
		gone  bool
	}{
		{"just elected", func(*bench) {}, probeGrace, false},
		{"elected for a while", func(*bench) {}, probeGrace + probeInterval + (maxMissed+2)*probeTick, true},
		{"frames unread", func(b *bench) { b.conn.unread = true }, 5 * time.Second, false},
		{"stalled", func(b *bench) { b.liveness.membership = fakeMembership{stalled: map[string]bool{"node-2": true}} }, 5 * time.Second, false},
		{"the question is not sent", func(b *bench) { b.conn.broken = true }, 5 * time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			b.elect("node-2", self)
			tc.spoil(b)
			b.pass(tc.wait)
			if _, gone := b.port.peers.unreachable["node-2"]; gone != tc.gone {
				t.Errorf("unreachable %v after %v, want %v", gone, tc.wait, tc.gone)
			}
		})
	}
}

// TestLivenessAfterAnother: a node is watched also after another, or this node, has
// answered for its only address for a while, whether or not it is heard to take it
// back: as after a cut, when the nodes had elected differently.
func TestLivenessAfterAnother(t *testing.T) {
	detected := probeGrace + probeInterval + (maxMissed+2)*probeTick
	for _, tc := range []struct {
		name  string
		first string // who answers before node-2 does
		back  func(*bench)
		wait  time.Duration
	}{
		{"it announces again", "node-3", func(b *bench) { b.hear(2, true) }, detected},
		{"it answers again", "node-3", func(b *bench) { b.hear(2, false) }, detected},
		{"it is back unheard", "node-3", func(*bench) {}, elsewhereInterval + detected},
		{"it takes over from this node", self, func(b *bench) { b.hear(2, false) }, detected},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			if tc.first == self {
				b.elect(self, "node-2", "node-3")
				b.pass(time.Second)
				b.elect("node-2", self, "node-3")
			} else {
				b.elect("node-2", self, "node-3")
				b.hear(3, false)
			}
			b.pass(probeInterval)
			tc.back(b)
			b.pass(tc.wait)
			if _, gone := b.port.peers.unreachable["node-2"]; !gone {
				t.Error("reachable though it does not answer")
			}
		})
	}
	t.Run("another has it", func(t *testing.T) {
		b := newBench(t)
		b.elect("node-2", self, "node-3")
		b.hear(3, false)
		b.conn.take()
		b.pass(elsewhereInterval - probeTick)
		if sent := b.conn.take(); len(sent) > 0 {
			t.Errorf("sent %q", sent)
		}
		b.pass(2 * probeTick)
		if sent := b.conn.take(); !slices.Contains(sent, "probe 192.0.2.200 "+mac(2).String()) {
			t.Errorf("not asked again: %q", sent)
		}
		b.hear(3, false)
		b.pass(elsewhereInterval - probeTick)
		if _, gone := b.port.peers.unreachable["node-2"]; gone {
			t.Error("unreachable though another has its address")
		}
	})
}

// TestLivenessOfConflictingHost: an announcer that leaves an address to another host,
// which answers when this node asks for it, does answer on the link as far as is known.
func TestLivenessOfConflictingHost(t *testing.T) {
	b := newBench(t)
	b.elect("node-2", self)
	for end := b.now.Add(2 * elsewhereInterval); b.now.Before(end); b.pass(probeTick) {
		if sent := b.conn.take(); slices.ContainsFunc(sent, func(s string) bool { return strings.HasPrefix(s, "probe 192.0.2.200 ") }) {
			b.hear(0xff, false)
		}
		if _, gone := b.port.peers.unreachable["node-2"]; gone {
			t.Fatal("unreachable though another host has its address")
		}
	}
	b.pass(elsewhereInterval + probeGrace + probeInterval + (maxMissed+2)*probeTick)
	if _, gone := b.port.peers.unreachable["node-2"]; !gone {
		t.Error("reachable though nobody answers any more")
	}
}

// fakeTable is a Handover.
type fakeTable map[netip.Addr]netip.Addr

func (t fakeTable) Former(a netip.Addr) netip.Addr { return t[a] }
func (t fakeTable) Addresses() (out []netip.Addr) {
	for a := range t {
		out = append(out, a)
	}
	return out
}
func (t fakeTable) Pass(a, to netip.Addr) error {
	if t[a] = to; !to.IsValid() {
		delete(t, a)
	}
	return nil
}

// TestHandover: segments go to the node that announced before, for as long as it
// forwards, and not in circles.
func TestHandover(t *testing.T) {
	node2, node3 := netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("192.0.2.13")
	now := time.Unix(1000, 0)
	view := func(states ...members.State) *cluster {
		d := &announce.Desired{
			InternalIPs:    map[string][]netip.Addr{self: {netip.MustParseAddr("192.0.2.11")}, "node-2": {node2}, "node-3": {node3}},
			Members:        map[string]members.Member{"node-2": {State: states[0]}, "node-3": {State: states[1]}},
			Advertisements: []announce.Advertisement{{Address: elect.Address{Addr: vip}, Result: elect.Result{Announcer: self}}},
		}
		c := newCluster(self, d)
		return &c
	}
	alive := view(members.Alive, members.Alive)
	for _, tc := range []struct {
		name  string
		table fakeTable
		do    func(h *handover)
		want  netip.Addr
	}{
		{"from a live node", fakeTable{}, func(h *handover) { h.start(alive, vip, "node-2") }, node2},
		{"from one whose agent is dead", fakeTable{}, func(h *handover) { h.start(view(members.HostAnswers, members.Alive), vip, "node-2") }, node2},
		{"from one that is off", fakeTable{}, func(h *handover) { h.start(view(members.HostSilent, members.Alive), vip, "node-2") }, netip.Addr{}},
		{"from none", fakeTable{}, func(h *handover) { h.start(alive, vip, "") }, netip.Addr{}},
		{"inherited by a restarted agent", fakeTable{vip: node3}, func(h *handover) { h.start(alive, vip, "node-2") }, node3},
		{"inherited, but gone", fakeTable{vip: node3}, func(h *handover) { h.start(view(members.Alive, members.HostSilent), vip, "node-2") }, node2},
		{"inherited once alone", fakeTable{vip: node3}, func(h *handover) { h.start(alive, vip, ""); h.start(alive, vip, "node-2") }, node2},
		{"inherited from one that announces until then", fakeTable{vip: node3}, func(h *handover) {
			h.announced(now, alive, vip, "node-3", false)
			h.start(alive, vip, "node-3")
			h.expire(now.Add(time.Hour))
		}, node3},
		{"two announce", fakeTable{}, func(h *handover) { h.announced(now, alive, vip, "node-3", true) }, node3},
		{"not yet a circle", fakeTable{vip: node2}, func(h *handover) { h.announced(now, alive, vip, "node-3", false); h.expire(now.Add(time.Hour)) }, node2},
		{"in a circle, for a while", fakeTable{vip: node2}, func(h *handover) { h.announced(now, alive, vip, "node-2", false); h.expire(now.Add(loopTime - 1)) }, node2},
		{"in a circle, no longer", fakeTable{vip: node2}, func(h *handover) { h.announced(now, alive, vip, "node-2", false); h.expire(now.Add(loopTime)) }, netip.Addr{}},
		{"to one that goes", fakeTable{vip: node2}, func(h *handover) { h.prune(view(members.Unreachable, members.Alive)) }, netip.Addr{}},
		{"to one that stays", fakeTable{vip: node2}, func(h *handover) { h.prune(view(members.HostAnswers, members.Alive)) }, node2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.do(newHandover(tc.table, logr.Discard()))
			if got := tc.table[vip]; got != tc.want {
				t.Errorf("passed on to %v, want %v", got, tc.want)
			}
		})
	}
}

// TestContacts: a node that comes back is informed immediately, and while any is lost, or was
// until just now, questions are asked often.
func TestContacts(t *testing.T) {
	c := contacts{lost: map[string]time.Time{}}
	now := time.Unix(1000, 0)
	both, lost := []elect.Node{{Name: "a", Alive: true}, {Name: "b", Alive: true}}, []elect.Node{{Name: "a", Alive: true}, {Name: "b"}}
	for _, step := range []struct {
		after      time.Duration
		old, nodes []elect.Node
		reannounce bool
		interval   time.Duration
	}{
		{0, nil, both, false, 0},
		{0, both, lost, false, lostRefresh},
		{longLost - 1, lost, lost, false, lostRefresh},
		{1, lost, lost, false, longLostRefresh},
		{0, lost, both, true, lostRefresh},
		{holdDown - 1, both, both, false, lostRefresh},
		{1, both, both, false, 0},
	} {
		now = now.Add(step.after)
		if got := c.track(now, step.old, step.nodes); got != step.reannounce {
			t.Errorf("at %v: reannounce %v, want %v", now, got, step.reannounce)
		}
		if got := c.interval(now, step.nodes); got != step.interval {
			t.Errorf("at %v: interval %v, want %v", now, got, step.interval)
		}
	}
	if !c.holdDownOver(now) || c.holdDownOver(now) {
		t.Error("the end of holdDown is reported not at all, or twice")
	}
}
