// SPDX-License-Identifier: Apache-2.0

package announce_test

import (
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
)

// link returns the node's eth0 and a handle to change it with.
func (l *lan) link(h *announcetest.Host) (*netlink.Handle, netlink.Link) {
	l.t.Helper()
	links := h.Net.Links()
	eth0, err := links.LinkByName("eth0")
	l.must(err)
	return links, eth0
}

// TestHardwareAddressChanges: the address is answered, and advertised, with the new
// one.
func TestHardwareAddressChanges(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 1, Echo: true})
	links, eth0 := l.link(l.Nodes[0])
	mac := wire.MAC{2, 0, 0, 0, 7, 7}
	l.must(links.LinkSetHardwareAddr(eth0, net.HardwareAddr(mac[:])))
	for _, a := range []netip.Addr{vip4, vip6} {
		l.eventually("answers with the new hardware address", func() bool {
			macs := l.ask(a)
			return len(macs) == 1 && macs[0] == mac
		})
	}
}

// TestInterfaceRenamed: the report follows the name.
func TestInterfaceRenamed(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 1})
	host := l.Nodes[0]
	links, eth0 := l.link(host)
	l.must(links.LinkSetDown(eth0))
	l.must(links.LinkSetName(eth0, "lan0"))
	l.must(links.LinkSetUp(eth0))
	l.eventually("reported under the new name, and answered", func() bool {
		r := l.Last(vip4)[host.Name]
		return r.State == announce.Announced && r.Interface == "lan0" && len(l.ask(vip4)) == 1
	})
}

// TestInterfaceAppears: an interface that is made after the start is used, and for
// IPv6 is in the groups that questions are sent to.
func TestInterfaceAppears(t *testing.T) {
	l := newLAN(t, announcetest.Options{Nodes: 1, Addresses: []netip.Addr{vip4, vip6}})
	host := l.Nodes[0]
	l.must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"late*"} }))
	l.must(l.Start())
	l.eventually("says that there is no interface", func() bool {
		r := l.Last(vip4)[host.Name]
		return r.State == announce.NoEligibleNode && strings.Contains(r.Reason, string(elect.NoInterface))
	})
	l.must(host.Attach("late0"))
	mac, err := host.Net.MAC("late0")
	l.must(err)
	for _, a := range []netip.Addr{vip4, vip6} {
		l.eventually("answers on it", func() bool {
			macs := l.ask(a)
			return len(macs) == 1 && macs[0] == wire.MAC(mac)
		})
	}
	var groups []byte
	l.must(host.Net.Do(func() (err error) {
		groups, err = os.ReadFile("/proc/thread-self/net/igmp6")
		return err
	}))
	group := hex.EncodeToString(ndp.SolicitedNode(vip6).AsSlice())
	if !regexp.MustCompile(`(?m)^\d+\s+late0\s+` + group).Match(groups) {
		t.Errorf("late0 is not in %s:\n%s", group, groups)
	}
}

// TestInterfaceComesLater: an interface that comes up after the start is used.
func TestInterfaceComesLater(t *testing.T) {
	l := newLAN(t, announcetest.Options{Nodes: 1, Addresses: []netip.Addr{vip4, vip6}})
	host := l.Nodes[0]
	l.must(host.Net.Down("eth0"))
	l.must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"eth*"} }))
	l.must(l.Start())
	l.eventually("says that the link is down", func() bool {
		return l.Last(vip4)[host.Name].State == announce.NoEligibleNode
	})
	l.must(host.Net.Up("eth0"))
	for _, a := range []netip.Addr{vip4, vip6} {
		l.announcer(a)
	}
	l.must(host.Net.Down("eth0"))
	l.eventually("stopped when it went down", func() bool {
		return l.Last(vip4)[host.Name].State == announce.NoEligibleNode
	})
	l.must(host.Net.Up("eth0"))
	l.announcer(vip6)
}

// TestConflictingHostComesLater: a host that takes an announced address without asking
// is reported, and the address stays announced.
func TestConflictingHostComesLater(t *testing.T) {
	l := startLAN(t, announcetest.Options{Nodes: 2, Addresses: []netip.Addr{vip4}})
	host := l.announcer(vip4)
	l.must(l.Client.AddAddress("eth0", netip.PrefixFrom(vip4, 32)))
	mac, err := l.Client.MAC("eth0")
	l.must(err)
	// Whatever it sends from the address shows it.
	l.must(l.Client.Do(func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(vip4, 0)), &net.UDPAddr{IP: net.IPv4(192, 0, 2, 77), Port: 9})
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	}))
	l.eventually("the host is reported", func() bool {
		r := l.Last(vip4)[host.Name]
		return r.State == announce.Announced && r.ConflictingHost == wire.MAC(mac)
	})
}
