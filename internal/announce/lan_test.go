// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/internal/testkit/confine"
)

func TestMain(m *testing.M) {
	reexec.Init()
	os.Exit(confine.Run(m.Run))
}

var (
	vip4 = netip.MustParseAddr("192.0.2.200")
	vip6 = netip.MustParseAddr("2001:db8:0:1::200")
)

// answerWait is how long an answer may take on busy cores.
const answerWait = 60 * time.Millisecond

// soon is when a test gives up. How long things take is measured by the benchmark
// failover, not here.
const soon = 20 * time.Second

// lan is a LAN with its test.
type lan struct {
	*announcetest.LAN
	t     *testing.T
	asker *announcetest.Asker
}

// newLAN makes a LAN whose announcers are not started yet.
func newLAN(t *testing.T, opts announcetest.Options) *lan {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") != "1" {
		t.Skip("network namespaces need root; set REQUIRE_KERNEL=1 to fail instead")
	}
	opts.Log = os.Getenv("ANNOUNCE_LOG") != ""
	n, err := announcetest.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	asker, err := announcetest.NewAsker(n.Client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(asker.Close)
	return &lan{n, t, asker}
}

// startLAN makes one with two addresses and waits until both are announced.
func startLAN(t *testing.T, opts announcetest.Options) *lan {
	t.Helper()
	if opts.Addresses == nil {
		opts.Addresses = []netip.Addr{vip4, vip6}
	}
	l := newLAN(t, opts)
	l.must(l.Start())
	for _, a := range opts.Addresses {
		l.announcer(a)
	}
	return l
}

func (l *lan) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// ask returns the hosts that answer one question.
func (l *lan) ask(a netip.Addr) []wire.MAC {
	l.t.Helper()
	macs, err := l.asker.Ask(a, answerWait)
	l.must(err)
	return macs
}

// announcer waits until one node answers for a, the one that the election
// prefers, and it alone.
func (l *lan) announcer(a netip.Addr) *announcetest.Host {
	l.t.Helper()
	var host *announcetest.Host
	l.eventually(fmt.Sprintf("one node answers for %v", a), func() bool {
		macs := l.ask(a)
		if len(macs) != 1 {
			return false
		}
		host = l.Node(macs[0])
		return host != nil && l.Last(a)[host.Name].State == announce.Announced
	})
	return host
}

func (l *lan) eventually(what string, ok func() bool) {
	l.t.Helper()
	testkit.EventuallyTrue(l.t, soon, what, ok)
}

// streamUntil sends a datagram to a every five milliseconds, as 200 requests a
// second, does something after a while, and goes on until done and a bit longer.
func (l *lan) streamUntil(a netip.Addr, do func(), done func() bool) (sent int, echoes []announcetest.Echo) {
	l.t.Helper()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		time.Sleep(200 * time.Millisecond)
		do()
		for start := time.Now(); !done() && time.Since(start) < soon; {
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond)
	}()
	sent, echoes, err := l.Stream(a, 5*time.Millisecond, stop)
	l.must(err)
	return sent, echoes
}

// takenFrom reports whether another node than h announces a.
func (l *lan) takenFrom(h *announcetest.Host, a netip.Addr) func() bool {
	return func() bool {
		for _, o := range l.others(h) {
			if l.Last(a)[o.Name].State == announce.Announced {
				return true
			}
		}
		return false
	}
}

// others returns the running nodes other than h.
func (l *lan) others(h *announcetest.Host) []*announcetest.Host {
	return slices.DeleteFunc(slices.Clone(l.Nodes), func(o *announcetest.Host) bool { return o == h || !o.Running() })
}

func TestExactlyOneAnswers(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3})
	for _, a := range []netip.Addr{vip4, vip6} {
		host := l.announcer(a)
		for range 10 {
			if macs := l.ask(a); len(macs) != 1 || macs[0] != host.MAC {
				t.Errorf("%v: answers from %v, want %v alone", a, macs, host.MAC)
			}
		}
		r := l.Last(a)[host.Name]
		if r.State != announce.Announced || r.Interface != "eth0" || time.Since(r.Since) > time.Minute {
			t.Errorf("%v: reported %+v", a, r)
		}
		for _, o := range l.others(host) {
			if r := l.Last(a)[o.Name]; r.State == announce.Announced {
				t.Errorf("%v: %s reports it too: %+v", a, o.Name, r)
			}
		}
	}
	if macs := l.ask(netip.MustParseAddr("192.0.2.201")); len(macs) != 0 {
		t.Errorf("an address that is nobody's is answered by %v", macs)
	}
}

// TestKernelLearnsAnnouncer: the client's own kernel finds the announcer, by ARP
// and by NDP, also when it verifies an old entry by unicast.
func TestKernelLearnsAnnouncer(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
	for _, a := range []netip.Addr{vip4, vip6} {
		host := l.announcer(a)
		stop := make(chan struct{})
		time.AfterFunc(300*time.Millisecond, func() { close(stop) })
		sent, echoes, err := l.Stream(a, 5*time.Millisecond, stop)
		l.must(err)
		if len(echoes) < sent-1 {
			t.Errorf("%v: %d of %d datagrams echoed", a, len(echoes), sent)
		}
		for _, e := range echoes {
			if e.Node != host.Name {
				t.Fatalf("%v: echo from %s, want %s", a, e.Node, host.Name)
			}
		}
		mac, err := l.Client.Neighbour("eth0", a)
		l.must(err)
		if wire.MAC(mac) != host.MAC {
			t.Errorf("%v: neighbour entry %v, want %v", a, mac, host.MAC)
		}
	}
}

// TestSIGKILL: another node answers, and no datagram is lost, because the killed
// agent's node goes on forwarding and clients are left with it.
func TestSIGKILL(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
		host := l.announcer(a)
		sent, echoes := l.streamUntil(a, host.Kill, l.takenFrom(host, a))
		if len(echoes) != sent {
			t.Errorf("%v: %d of %d datagrams lost", a, sent-len(echoes), sent)
		}
		if !firstFromAnother(echoes, host.Name).IsZero() {
			t.Errorf("%v: the client was moved to another node though the first still forwards", a)
		}
		if next := l.announcer(a); next == host {
			t.Errorf("%v: still announced by the killed one", a)
		}
	}
}

// TestRestart: a killed agent comes back, is heard by the others, and takes a
// while until its kernel is in sync. Clients stay where their connections are.
func TestRestart(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
		host := l.announcer(a)
		sent, echoes := l.streamUntil(a, func() {
			host.Kill()
			l.eventually("another announces", l.takenFrom(host, a))
			l.must(host.InSync(false))
			l.must(host.Start())
			time.Sleep(time.Second)
			l.must(host.InSync(true))
		}, func() bool { return l.Last(a)[host.Name].State == announce.Announced && !l.takenFrom(host, a)() })
		if len(echoes) != sent {
			t.Errorf("%v: %d of %d datagrams lost", a, sent-len(echoes), sent)
		}
		if !firstFromAnother(echoes, host.Name).IsZero() {
			t.Errorf("%v: the client was moved to another node though the first forwarded all the time", a)
		}
		if l.announcer(a) != host {
			t.Errorf("%v: %s does not announce it again", a, host.Name)
		}
	}
}

// TestRestartOfAll: all agents are killed and started again, and the one that
// announced, as the API server has it, is ready last.
func TestRestartOfAll(t *testing.T) {
	for i, a := range []netip.Addr{vip4, vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
		host := l.announcer(a)
		l.must(l.Change(func(c *announcetest.Command) { c.Addresses[i].Recorded = host.Name }))
		sent, echoes := l.streamUntil(a, func() {
			for _, h := range l.Nodes {
				h.Kill()
			}
			l.must(host.InSync(false))
			l.must(l.Start())
			l.eventually("another announces", l.takenFrom(host, a))
			time.Sleep(500 * time.Millisecond)
			l.must(host.InSync(true))
		}, func() bool { return l.Last(a)[host.Name].State == announce.Announced && !l.takenFrom(host, a)() })
		if len(echoes) != sent {
			t.Errorf("%v: %d of %d datagrams lost", a, sent-len(echoes), sent)
		}
		if !firstFromAnother(echoes, host.Name).IsZero() {
			t.Errorf("%v: the client was moved to another node though the first forwarded all the time", a)
		}
	}
}

func firstFromAnother(echoes []announcetest.Echo, node string) time.Time {
	for _, e := range echoes {
		if e.Node != node {
			return e.At
		}
	}
	return time.Time{}
}

// TestCutOff: the announcer's cable is pulled at the switch, and put back.
func TestCutOff(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
	for _, a := range []netip.Addr{vip4, vip6} {
		host := l.announcer(a)
		_, echoes := l.streamUntil(a, func() { l.must(host.Cut()) }, l.takenFrom(host, a))
		if len(echoes) == 0 || echoes[len(echoes)-1].Node == host.Name {
			t.Errorf("%v: the client did not come to another node: %d echoes", a, len(echoes))
		}
		l.must(host.Mend())
		l.settled(l.asker, a)
		l.announcer(a)
	}
}

// settled waits until exactly one node answers for each address, three times in a
// row.
func (l *lan) settled(asker *announcetest.Asker, addrs ...netip.Addr) {
	l.t.Helper()
	for _, a := range addrs {
		l.eventually(fmt.Sprintf("exactly one answers for %v", a), func() bool {
			for range 3 {
				macs, err := asker.Ask(a, answerWait)
				l.must(err)
				if len(macs) != 1 {
					return false
				}
			}
			return true
		})
	}
}

// TestPlannedLeave: an agent that is stopped hands over first. No datagram
// is lost, and some node answers at all times.
func TestPlannedLeave(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
		host := l.announcer(a)
		sent, echoes := l.streamUntil(a, host.Stop, l.takenFrom(host, a))
		if len(echoes) != sent {
			t.Errorf("%v: %d of %d datagrams lost", a, sent-len(echoes), sent)
		}
		if firstFromAnother(echoes, host.Name).IsZero() {
			t.Errorf("%v: never came to another node", a)
		}
		if next := l.announcer(a); next == host {
			t.Errorf("%v: still announced by the one that left", a)
		}
	}
}

// TestOpenConnections: an address moves to another node, whose agent is killed and
// comes back, and moves home again. Connections stay where they were opened.
func TestOpenConnections(t *testing.T) {
	for _, a := range []netip.Addr{vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
		type opened struct {
			c    *announcetest.Connection
			node string
		}
		var all, closing []opened
		open := func() opened {
			t.Helper()
			c, err := l.Connect(a)
			l.must(err)
			t.Cleanup(c.Close)
			return opened{c, l.announcer(a).Name}
		}
		openMore := func() { all, closing = append(all, open()), append(closing, open()) }
		check := func(when string) {
			t.Helper()
			for _, o := range slices.Concat(all, closing) {
				if node, err := o.c.Ask(); err != nil || node != o.node {
					t.Fatalf("%v, %s: the connection to %s is answered by %q: %v", a, when, o.node, node, err)
				}
			}
		}
		cordon := func(h *announcetest.Host, yes bool) {
			l.must(l.node(h, func(n *announcetest.Node) { n.Cordoned = yes }))
		}
		leave := func(h *announcetest.Host) *announcetest.Host {
			t.Helper()
			cordon(h, true)
			l.eventually("another announces", l.takenFrom(h, a))
			return l.announcer(a)
		}
		host := l.announcer(a)
		openMore()
		check("at first")

		next := leave(host)
		check("moved")
		openMore()
		check("moved, with new ones")

		next.Kill()
		l.must(next.Start())
		l.eventually("it announces again", func() bool { return l.announcer(a) == next })
		check("the new announcer's agent restarted")

		leave(next)
		openMore()
		check("moved to the third")

		cordon(host, false)
		l.eventually("the first announces again", func() bool { return l.announcer(a) == host })
		check("moved home")
		for _, o := range closing {
			if node, err := o.c.Finish(); err != nil || node != o.node {
				t.Errorf("%v: goodbye of %q instead of %s, after the client has closed: %v", a, node, o.node, err)
			}
		}
	}
}

func TestReasonsToMove(t *testing.T) {
	tests := []struct {
		name string
		do   func(l *lan, h *announcetest.Host) error
	}{
		{"cordoned", func(l *lan, h *announcetest.Host) error {
			return l.node(h, func(n *announcetest.Node) { n.Cordoned = true })
		}},
		{"excluded by label", func(l *lan, h *announcetest.Host) error {
			return l.node(h, func(n *announcetest.Node) { n.Excluded = true })
		}},
		{"about to be deleted", func(l *lan, h *announcetest.Host) error {
			return l.node(h, func(n *announcetest.Node) { n.Deleting = true })
		}},
		{"without its network", func(l *lan, h *announcetest.Host) error {
			return l.node(h, func(n *announcetest.Node) { n.NoNetwork = true })
		}},
		{"kernel out of sync", func(_ *lan, h *announcetest.Host) error { return h.InSync(false) }},
		{"endpoints elsewhere, policy Local", func(l *lan, h *announcetest.Host) error {
			var local []string
			for _, o := range l.others(h) {
				local = append(local, o.Name)
			}
			return l.Change(func(c *announcetest.Command) {
				for i := range c.Addresses {
					c.Addresses[i].Local = local
				}
			})
		}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
			host := l.announcer(vip4)
			sent, echoes := l.streamUntil(vip4, func() { l.must(tc.do(l, host)) }, l.takenFrom(host, vip4))
			if len(echoes) != sent {
				t.Errorf("%d of %d datagrams lost", sent-len(echoes), sent)
			}
			if next := l.announcer(vip4); next == host {
				t.Error("still announced by the same node")
			}
		})
	}
}

// node edits one node of the cluster.
func (l *lan) node(h *announcetest.Host, edit func(*announcetest.Node)) error {
	return l.Change(func(c *announcetest.Command) {
		for i := range c.Nodes {
			if c.Nodes[i].Name == h.Name {
				edit(&c.Nodes[i])
			}
		}
	})
}

// TestNobody: when no node may, one of them says why.
func TestNobody(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3})
	l.must(l.Change(func(c *announcetest.Command) {
		for i := range c.Nodes {
			c.Nodes[i].Excluded = true
		}
	}))
	want := "node-1, node-2, node-3: " + string(elect.Excluded)
	l.eventually("one says that nobody may", func() bool {
		said := 0
		for _, r := range l.Last(vip4) {
			if r.State == announce.NoEligibleNode {
				if said++; r.Reason != want {
					t.Fatalf("reason %q, want %q", r.Reason, want)
				}
			}
		}
		return said == 1 && len(l.ask(vip4)) == 0
	})
	l.must(l.node(l.Nodes[1], func(n *announcetest.Node) { n.Excluded = false }))
	if h := l.announcer(vip4); h.Name != "node-2" {
		t.Errorf("announced by %s, want node-2", h.Name)
	}
}

// TestReluctant: soft reasons on all nodes, or on the only one that may announce
// for other reasons, leave the addresses where they are, without one datagram
// lost, and the report says why. With another node to go to they move.
func TestReluctant(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(c *announcetest.Command, announcer string)
		want string // of the report's reason
	}{
		{"all are cordoned", func(c *announcetest.Command, _ string) {
			for i := range c.Nodes {
				c.Nodes[i].Cordoned = true
			}
		}, string(elect.Cordoned) + ", but no other node can do better. "},
		{"all are about to be deleted, and the others cordoned, too", func(c *announcetest.Command, announcer string) {
			for i := range c.Nodes {
				c.Nodes[i].Deleting, c.Nodes[i].Cordoned = true, c.Nodes[i].Name != announcer
			}
		}, string(elect.Deleting) + ", but no other node can do better. "},
		{"cordoned, with the only endpoints of policy Local", func(c *announcetest.Command, announcer string) {
			for i := range c.Nodes {
				c.Nodes[i].Cordoned = c.Nodes[i].Name == announcer
			}
			for i := range c.Addresses {
				c.Addresses[i].Local = []string{announcer}
			}
		}, string(elect.NoEndpoint)},
		{"cordoned, the others excluded by label", func(c *announcetest.Command, announcer string) {
			for i := range c.Nodes {
				c.Nodes[i].Cordoned, c.Nodes[i].Excluded = c.Nodes[i].Name == announcer, c.Nodes[i].Name != announcer
			}
		}, string(elect.Excluded)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, a := range []netip.Addr{vip4, vip6} {
				l := startLAN(t, announcetest.Options{Nodes: 3, Echo: true})
				host := l.announcer(a)
				said := func() bool {
					r := l.Last(a)[host.Name]
					return r.State == announce.Announced && strings.Contains(r.Reason, tc.want)
				}
				sent, echoes := l.streamUntil(a, func() {
					l.must(l.Change(func(c *announcetest.Command) { tc.edit(c, host.Name) }))
				}, said)
				if len(echoes) != sent {
					t.Errorf("%v: %d of %d datagrams lost", a, sent-len(echoes), sent)
				}
				if at := firstFromAnother(echoes, host.Name); !at.IsZero() {
					t.Errorf("%v: moved to another node, which is no better", a)
				}
			}
		})
	}
}

func TestOwnLinkDown(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Management: true})
	host := l.announcer(vip4)
	l.must(host.Net.Down("eth0"))
	l.eventually("another node announces", l.takenFrom(host, vip4))
	if next := l.announcer(vip4); next == host {
		t.Error("announced on a link that is down")
	}
	l.must(host.Net.Up("eth0"))
	l.eventually("the preferred node is back", func() bool {
		macs := l.ask(vip4)
		return len(macs) == 1 && macs[0] == host.MAC
	})
}

// TestConflictingHost: an address that is in use on the LAN is not announced, the
// host is reported, and the address is taken when it is gone.
func TestConflictingHost(t *testing.T) {
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip4, vip6}})
	l.must(l.Client.AddAddress("eth0", netip.PrefixFrom(vip4, 24)))
	l.must(l.Client.AddAddress("eth0", netip.PrefixFrom(vip6, 64)))
	l.must(l.Start())
	mac, err := l.Client.MAC("eth0")
	l.must(err)
	for _, a := range []netip.Addr{vip4, vip6} {
		l.eventually("the conflict is reported", func() bool {
			for _, r := range l.Last(a) {
				if r.State == announce.Conflicted && r.ConflictingHost == wire.MAC(mac) && r.Interface == "eth0" {
					return true
				}
			}
			return false
		})
		if macs := l.ask(a); len(macs) != 0 {
			t.Errorf("%v: answered by %v beside the stranger", a, macs)
		}
	}
}

// TestGossipBlocked: the agents do not hear each other, but the LAN works. It
// does not come to a second answer, and failover works still.
func TestGossipBlocked(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Management: true})
	host := l.announcer(vip4)
	start := time.Now()
	for _, h := range l.Nodes {
		l.must(h.CutGossip())
	}
	for time.Since(start) < 3*time.Second {
		if macs := l.ask(vip4); len(macs) > 1 {
			t.Errorf("%v after gossip stopped: answers from %v", time.Since(start), macs)
		}
	}
	if now := l.announcer(vip4); now != host {
		t.Logf("moved from %s to %s", host.Name, now.Name)
		host = now
	}
	host.Kill()
	l.eventually("a successor without gossip", func() bool {
		macs := l.ask(vip4)
		return len(macs) == 1 && macs[0] != host.MAC
	})
	for _, h := range l.Nodes {
		l.must(h.MendGossip())
	}
	l.must(host.Start())
	l.announcer(vip4)
}

// TestKeyRotation: the key changes as the controller changes it, reaching one node
// after the other, and again. Nobody loses anybody, and nothing moves.
func TestKeyRotation(t *testing.T) {
	const grace = 400 * time.Millisecond
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip4, vip6}})
	key := func(b byte) []byte { return bytes.Repeat([]byte{b}, members.KeyLength) }
	l.must(l.Change(func(c *announcetest.Command) { c.KeyGrace, c.Keys = grace, [][]byte{key(1)} }))
	l.must(l.Start())
	l.announcer(vip4)
	l.announcer(vip6)
	start := time.Now()
	for _, keys := range [][]byte{{1, 2}, {2, 1}, {2, 3}, {3, 2}, {3, 4}} {
		l.must(l.Spread(grace/4, func(c *announcetest.Command) { c.Keys = [][]byte{key(keys[0]), key(keys[1])} }))
		time.Sleep(2 * grace) // in use everywhere, and for longer than a death would take
	}
	for _, e := range l.Events(start) {
		if len(e.Dead) > 0 || e.Report != nil {
			t.Errorf("%s says: %+v", e.Node, e)
		}
	}
}

// TestFailbackDelayed: a better node that comes back takes the address after the
// pool's delay, and not before.
func TestFailbackDelayed(t *testing.T) {
	const delay = 2 * time.Second
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip4}})
	l.must(l.Change(func(c *announcetest.Command) { c.Preempt = delay }))
	l.must(l.Start())
	first := l.announcer(vip4)
	first.Kill()
	second := l.announcer(vip4)
	back := time.Now()
	l.must(first.Start())
	l.eventually("the preferred node has it again", func() bool {
		macs := l.ask(vip4)
		return len(macs) == 1 && macs[0] == first.MAC
	})
	if waited := l.Last(vip4)[first.Name].Since.Sub(back); second == first || waited < delay {
		t.Errorf("%s took the address back from %s after %v, want %v at least", first.Name, second.Name, waited, delay)
	}
}

// TestFailbackNever: a better node that comes back leaves the address where it
// is.
func TestFailbackNever(t *testing.T) {
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{vip4}})
	l.must(l.Change(func(c *announcetest.Command) { c.Preempt = announce.Never }))
	l.must(l.Start())
	first := l.announcer(vip4)
	first.Kill()
	var second *announcetest.Host
	l.eventually("a successor", func() bool {
		macs := l.ask(vip4)
		if len(macs) == 1 && macs[0] != first.MAC {
			second = l.Node(macs[0])
		}
		return second != nil
	})
	l.must(first.Start())
	silent := 0
	for start := time.Now(); time.Since(start) < 2500*time.Millisecond; {
		macs := l.ask(vip4)
		if len(macs) == 0 {
			// One answer may be late on busy cores.
			if silent++; silent == 5 {
				t.Fatalf("no answer to %d questions in a row, want %v to keep it", silent, second.MAC)
			}
			continue
		}
		silent = 0
		if len(macs) != 1 || macs[0] != second.MAC {
			t.Fatalf("answers from %v, want %v to keep it", macs, second.MAC)
		}
	}
	l.must(l.Change(func(c *announcetest.Command) { c.Preempt = 0 }))
	l.eventually("the preferred node after the policy has changed", func() bool {
		macs := l.ask(vip4)
		return len(macs) == 1 && macs[0] == first.MAC
	})
}

// TestManyAddresses: 2,000 addresses on one node are announced, and each is
// answered for.
func TestManyAddresses(t *testing.T) {
	var addrs []netip.Addr
	for i := range 2000 {
		a := netip.AddrFrom4([4]byte{192, 0, byte(4 + i/250), byte(i % 250)})
		if i%2 == 1 {
			b := netip.MustParseAddr("2001:db8:0:1:1::").As16()
			b[14], b[15] = byte(i>>8), byte(i)
			a = netip.AddrFrom16(b)
		}
		addrs = append(addrs, a)
	}
	l := newLAN(t, announcetest.Options{Nodes: 1, Addresses: addrs})
	l.must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"eth*"} }))
	start := time.Now()
	l.must(l.Start())
	l.eventually("all are announced", func() bool {
		announced := map[netip.Addr]bool{}
		for _, e := range l.Events(start) {
			if e.Report != nil && e.Report.State == announce.Announced {
				announced[e.Report.Address] = true
			}
		}
		return len(announced) == len(addrs)
	})
	for _, a := range addrs {
		at, err := l.asker.Question(a)
		l.must(err)
		var got []announcetest.Answer
		l.eventually(fmt.Sprintf("an answer for %v", a), func() bool {
			got = l.asker.Answers(a, at)
			return len(got) > 0
		})
		if l.Node(got[0].MAC) != l.Nodes[0] {
			t.Fatalf("%v: answer from %v", a, got[0].MAC)
		}
	}
	if macs := l.ask(netip.MustParseAddr("192.0.3.7")); len(macs) != 0 {
		t.Errorf("an address that is nobody's is answered by %v", macs)
	}
}

// TestLANCutButGossipAlive: the announcer's cable to the LAN is cut at the switch
// while the other network carries the gossip. Another node announces, and gives the
// address back.
func TestLANCutButGossipAlive(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Management: true})
	for _, a := range []netip.Addr{vip4, vip6} {
		host := l.announcer(a)
		l.must(host.Cut())
		l.eventually("another node answers", func() bool {
			macs := l.ask(a)
			return len(macs) == 1 && macs[0] != host.MAC
		})
		l.must(host.Mend())
		l.eventually("the elected node answers alone again", func() bool {
			macs := l.ask(a)
			return len(macs) == 1 && macs[0] == host.MAC
		})
	}
}
