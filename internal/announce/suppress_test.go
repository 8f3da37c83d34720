// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// TestSuppressed: between two segments questions and answers pass, but neither
// probes nor announcements, as in an EVPN; gossip has a network of its own. There
// is one announcer for both, at first, and when the address moves.
func TestSuppressed(t *testing.T) {
	addrs := []netip.Addr{vip4, vip6, netip.MustParseAddr("192.0.2.201"), netip.MustParseAddr("2001:db8:0:1::201")}
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: addrs, Management: true, Partition: true})
	far, err := announcetest.NewAsker(l.Far)
	l.must(err)
	t.Cleanup(far.Close)
	l.must(l.Nodes[1].Away())
	l.must(l.JoinSuppressed())
	l.must(l.Start())
	one := func(when string) {
		t.Helper()
		for _, a := range addrs {
			l.eventually(when+": one node for both segments, "+a.String(), func() bool {
				var last wire.MAC
				for range 3 {
					near, err := l.asker.Ask(a, answerWait)
					l.must(err)
					away, err := far.Ask(a, answerWait)
					l.must(err)
					if len(near) != 1 || len(away) != 1 || near[0] != away[0] || !last.IsZero() && last != near[0] {
						return false
					}
					last = near[0]
				}
				return true
			})
		}
	}
	one("at first")
	for _, h := range l.Nodes {
		l.must(l.node(h, func(n *announcetest.Node) { n.Cordoned = true }))
		one(h.Name + " cordoned")
		l.must(l.node(h, func(n *announcetest.Node) { n.Cordoned = false }))
		one(h.Name + " back")
	}
	l.Nodes[1].Kill()
	one("killed")
	l.must(l.Nodes[1].Start())
	one("started again")
}

// TestSwitchAnswersForTheDead: a switch answers questions and probes from what it
// has learned, for a node that is gone, until another announces the address.
func TestSwitchAnswersForTheDead(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		l := startLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}, Management: true})
		dead, start := l.announcer(a), time.Now()
		l.must(dead.CutGossip())
		l.must(dead.Cut())
		stop := l.asker.Remember(a, dead.MAC)
		t.Cleanup(stop)
		l.eventually("another announces", l.takenFrom(dead, a))
		for _, e := range l.Events(start) {
			if e.Report != nil && e.Node != dead.Name && !e.Report.ConflictingHost.IsZero() {
				t.Errorf("%v: %s reports a conflict: %+v", a, e.Node, *e.Report)
			}
		}
	}
}

// TestAskersAreInformed: hosts that announcements do not come through to, and that have
// asked before, hear of the new announcer without asking again.
func TestAskersAreInformed(t *testing.T) {
	addrs := []netip.Addr{vip4, vip6}
	l := newLAN(t, announcetest.Options{Nodes: 3, Addresses: addrs, Management: true, Partition: true})
	far, err := announcetest.NewAsker(l.Far)
	l.must(err)
	t.Cleanup(far.Close)
	l.must(l.JoinSuppressed())
	l.must(l.Start())
	for _, a := range addrs {
		host := l.announcer(a)
		l.eventually("answered", func() bool {
			macs, err := far.Ask(a, answerWait)
			l.must(err)
			return len(macs) == 1 && macs[0] == host.MAC
		})
		start := time.Now()
		l.must(l.node(host, func(n *announcetest.Node) { n.Cordoned = true }))
		l.eventually("the asker is informed", func() bool {
			for _, r := range far.Answers(a, start) {
				if r.MAC != host.MAC {
					return true
				}
			}
			return false
		})
		l.must(l.node(host, func(n *announcetest.Node) { n.Cordoned = false }))
	}
}

// TestSilentAnnouncerIsReported: a node whose agent is alive does not answer on the
// LAN. The node that announces in its place reports it.
func TestSilentAnnouncerIsReported(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Management: true})
	host := l.announcer(vip4)
	l.must(host.Cut())
	l.eventually("the silent node is named", func() bool {
		for _, o := range l.others(host) {
			if r := l.Last(vip4)[o.Name]; r.State == announce.Announced && r.Unreachable == host.Name {
				return true
			}
		}
		return false
	})
	l.must(host.Mend())
	l.eventually("it is back, and nothing is reported any longer", func() bool {
		r := l.Last(vip4)[host.Name]
		return r.State == announce.Announced && r.Unreachable == "" && !l.takenFrom(host, vip4)()
	})
}

// oneWay drops what one direction of the node's cable carries: what it is to hear
// with the hook egress of its port, what it says with the hook ingress. The
// function that it returns mends it.
func (l *lan) oneWay(h *announcetest.Host, hook string) (mend func()) {
	l.t.Helper()
	nft := func(words ...string) {
		l.t.Helper()
		l.must(l.Hub().Do(func() error { return exec.Command("nft", words...).Run() }))
	}
	nft("add", "table", "netdev", "cable")
	nft("add", "chain", "netdev", "cable", h.Name, "{ type filter hook "+hook+" device "+h.Port()+" priority 0; policy drop; }")
	return func() { l.t.Helper(); nft("delete", "table", "netdev", "cable") }
}

// deaf reports whether h has said last that it receives nothing on an interface.
func (l *lan) deaf(h *announcetest.Host) bool {
	deaf := false
	for _, e := range l.Events(time.Time{}) {
		if e.Node == h.Name && e.Deaf != nil {
			deaf = len(e.Deaf) > 0
		}
	}
	return deaf
}

// TestDeaf: a node hears nothing on the LAN, or no host hears it, while gossip has a
// network of its own. The successor says so and does not announce the address even
// once; the announcer is succeeded. Once the cable is mended the elected node
// announces, alone.
func TestDeaf(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		t.Run(a.String(), func(t *testing.T) {
			t.Parallel()
			l := startLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}, Management: true, Echo: true})
			host := l.announcer(a)
			next := l.ranked(a, host)[0]
			by := func(what string, h *announcetest.Host) {
				t.Helper()
				l.eventually(what, func() bool {
					macs := l.ask(a)
					return len(macs) == 1 && macs[0] == h.MAC
				})
			}

			start := time.Now()
			said := l.count(a, next.MAC)
			mend := l.oneWay(next, "egress")
			l.eventually("the deaf node says so", func() bool { return l.deaf(next) })
			stop := make(chan struct{})
			time.AfterFunc(2*time.Second, func() { close(stop) })
			sent, echoes, err := l.Stream(a, 5*time.Millisecond, stop)
			l.must(err)
			if n := said(); n > 0 || len(echoes) < sent-1 {
				t.Errorf("%d announcements of the deaf node, %d of %d datagrams lost", n, sent-len(echoes), sent)
			}
			for _, e := range l.Events(start) {
				if e.Report != nil && e.Node == next.Name && e.Report.State == announce.Announced {
					t.Errorf("the deaf node announces: %+v", *e.Report)
				}
			}
			mend()
			l.eventually("the node hears again", func() bool { return !l.deaf(next) })
			by("one announcer", host)

			for _, tc := range []struct{ what, hook string }{{"deaf", "egress"}, {"mute", "ingress"}} {
				mend := l.oneWay(host, tc.hook)
				by("the "+tc.what+" announcer is succeeded", next)
				mend()
				by("who was "+tc.what+" is back", host)
			}
		})
	}
}

// TestDeafWithoutGossip: the LAN carries the gossip, too, so a node that does not hear
// holds all others dead, and they hold it dead. Announcing for a dead node is done
// often; but the last word is of one that answers.
func TestDeafWithoutGossip(t *testing.T) {
	for _, a := range []netip.Addr{vip4, vip6} {
		t.Run(a.String(), func(t *testing.T) {
			t.Parallel()
			l := startLAN(t, announcetest.Options{Nodes: 3, Addresses: []netip.Addr{a}, Echo: true})
			host := l.announcer(a)
			for _, deaf := range []*announcetest.Host{host, l.ranked(a, host)[0]} {
				mend := l.oneWay(deaf, "egress")
				l.eventually("another node answers", func() bool {
					macs := l.ask(a)
					return len(macs) == 1 && macs[0] != deaf.MAC
				})
				l.eventually("the deaf node announces too", func() bool {
					return l.Last(a)[deaf.Name].State == announce.Announced
				})
				stop := make(chan struct{})
				time.AfterFunc(3*time.Second, func() { close(stop) })
				sent, echoes, err := l.Stream(a, 5*time.Millisecond, stop)
				l.must(err)
				if len(echoes) < sent*3/4 {
					t.Errorf("%s is deaf: %d of %d datagrams lost", deaf.Name, sent-len(echoes), sent)
				}
				t.Logf("%s is deaf: %d of %d datagrams lost", deaf.Name, sent-len(echoes), sent)
				mend()
				l.eventually("the elected node is back", func() bool {
					macs := l.ask(a)
					return len(macs) == 1 && macs[0] == host.MAC
				})
			}
		})
	}
}
