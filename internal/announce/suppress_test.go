// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/announcetest"
	"github.com/causeway-lb/causeway/internal/announce/wire"
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
			if e.Report != nil && e.Node != dead.Name && !e.Report.Stranger.IsZero() {
				t.Errorf("%v: %s reports a conflict: %+v", a, e.Node, *e.Report)
			}
		}
	}
}

// TestAskersAreTold: hosts that announcements do not come through to, and that have
// asked before, hear of the new announcer without asking again.
func TestAskersAreTold(t *testing.T) {
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
		l.eventually("the asker is told", func() bool {
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
// LAN. Who announces in its place says so.
func TestSilentAnnouncerIsReported(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3, Management: true})
	host := l.announcer(vip4)
	l.must(host.Cut())
	l.eventually("the silent node is named", func() bool {
		for _, o := range l.others(host) {
			if r := l.Last(vip4)[o.Name]; r.State == announce.Announced && r.Silent == host.Name {
				return true
			}
		}
		return false
	})
	l.must(host.Mend())
	l.eventually("it is back, and nothing is reported any more", func() bool {
		r := l.Last(vip4)[host.Name]
		return r.State == announce.Announced && r.Silent == "" && !l.takenFrom(host, vip4)()
	})
}
