// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// TestForeignVLAN: a node on a trunk port hears the frames of VLANs for which it
// has no interface. They are another LAN's. Those of VLAN 0 have a priority only.
// With tags that come as metadata of the frame TestKinds does the same.
func TestForeignVLAN(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 1})
	mac := l.Nodes[0].MAC
	ask := func(a netip.Addr, vlan uint16) []announcetest.Answer {
		t.Helper()
		at, err := l.asker.Tagged(a, vlan)
		l.must(err)
		time.Sleep(answerWait)
		return l.asker.Answers(a, at)
	}
	for _, a := range []netip.Addr{vip4, vip6} {
		l.eventually("a frame with a priority is answered", func() bool {
			got := ask(a, 0)
			return len(got) == 1 && got[0].MAC == mac
		})
		for _, vlan := range []uint16{1, 7, 4094} {
			if got := ask(a, vlan); len(got) > 0 {
				t.Errorf("%v: a question of VLAN %d is answered: %v", a, vlan, got)
			}
		}
	}
}

// TestConflictingHostProbes: a host probes for the address all the time, as switches do
// that track hosts. It is no conflict, and keeps no successor away.
func TestConflictingHostProbes(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 3})
	mac, err := l.Client.MAC("eth0")
	l.must(err)
	for _, a := range []netip.Addr{vip4, vip6} {
		var p wire.Protocol = arp.Protocol{}
		if a.Is6() {
			p = ndp.Protocol{}
		}
		probe := p.Probe(a, wire.MAC(mac), wire.MAC{}, wire.Seal{})
		stop := make(chan struct{})
		var probing sync.WaitGroup
		probing.Go(func() {
			for tick := time.NewTicker(5 * time.Millisecond); ; {
				select {
				case <-stop:
					tick.Stop()
					return
				case <-tick.C:
					_ = l.asker.Send(probe)
				}
			}
		})
		host, start := l.announcer(a), time.Now()
		l.must(host.Cut())
		l.eventually("another announces", l.takenFrom(host, a))
		close(stop)
		probing.Wait()
		for _, e := range l.Events(start) {
			if e.Report != nil && !e.Report.ConflictingHost.IsZero() {
				t.Errorf("%v: %s reports a conflict with one that only probes: %+v", a, e.Node, *e.Report)
			}
		}
		l.must(host.Mend())
		l.settled(l.asker, a)
	}
}

// TestInterfaceMadeAgain: an interface is deleted and another one made with its
// index and hardware address, before the agent looks.
func TestInterfaceMadeAgain(t *testing.T) {
	l := newLAN(t, announcetest.Options{Nodes: 1, Addresses: []netip.Addr{vip4, vip6}, Management: true})
	host := l.Nodes[0]
	l.must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"lan0"} }))
	make := func() {
		t.Helper()
		links := host.Net.Links()
		for _, args := range [][]string{
			{"link", "add", "lan0", "index", "77", "address", "02:00:00:00:08:08", "type", "bridge"},
			{"link", "set", "eth0", "master", "lan0"},
			{"link", "set", "lan0", "up"},
		} {
			l.must(host.Net.Do(func() error { return exec.Command("ip", args...).Run() }))
		}
		_, err := links.LinkByName("lan0")
		l.must(err)
	}
	answered := func() {
		t.Helper()
		for _, a := range []netip.Addr{vip4, vip6} {
			l.eventually("answers", func() bool {
				macs := l.ask(a)
				return len(macs) == 1 && macs[0] == wire.MAC{2, 0, 0, 0, 8, 8} && l.Last(a)[host.Name].State == announce.Announced
			})
		}
	}
	make()
	l.must(l.Start())
	answered()
	for range 3 {
		l.must(host.Freeze())
		bridge, err := host.Net.Links().LinkByName("lan0")
		l.must(err)
		l.must(host.Net.Links().LinkDel(bridge))
		make()
		l.must(host.Thaw())
		answered()
	}
}
