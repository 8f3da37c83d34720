// SPDX-License-Identifier: Apache-2.0

package announcetest_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/testkit/announcetest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) {
	reexec.Init()
	nstest.Main(m)
}

var addresses = []netip.Addr{netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8:0:1::200")}

// on is the interface of the tests' pool.
const on = "lan0"

// add makes an interface in a namespace, up.
func add(n *network.Namespace, l netlink.Link) error {
	if err := n.Links().LinkAdd(l); err != nil {
		return err
	}
	return n.Up(l.Attrs().Name)
}

// over returns the attributes of an interface on top of eth0.
func over(n *network.Namespace, name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	a.ParentIndex, _ = n.Index("eth0")
	return a
}

// enslave makes an interface a port of another.
func enslave(n *network.Namespace, port, master string) error {
	if err := n.Down(port); err != nil { // a bond takes no other
		return err
	}
	return n.Plug(port, master)
}

// TestKinds announces on interfaces of every kind, and on no other.
func TestKinds(t *testing.T) {
	vlan := func(n *network.Namespace, name string) error {
		return add(n, &netlink.Vlan{LinkAttrs: over(n, name), VlanId: 10})
	}
	for _, tc := range []struct {
		name string
		node func(h *announcetest.Host) error
		// client, unless nil, makes the interface lan0 on which the client hears
		// the node's; else that is eth0.
		client func(n *network.Namespace) error
		// apart reports that eth0 is another segment than lan0.
		apart bool
		// beside, unless nil, makes the interface beside0, whose segment is not to be
		// answered.
		beside func(n *network.Namespace) error
		// then, unless nil, is done while the addresses are announced, which goes
		// on afterwards.
		then func(h *announcetest.Host) error
	}{
		{
			name:   "vlan",
			node:   func(h *announcetest.Host) error { return vlan(h.Net, on) },
			client: func(n *network.Namespace) error { return vlan(n, on) },
			apart:  true,
		},
		{
			name: "below a vlan", // lan0 is the name that eth0 gets
			node: func(h *announcetest.Host) error {
				if err := vlan(h.Net, "eth0.10"); err != nil {
					return err
				}
				return rename(h.Net, "eth0", on)
			},
			beside: func(n *network.Namespace) error { return vlan(n, "beside0") },
		},
		{
			name:   "on a trunk, whose VLANs are not the node's",
			node:   func(h *announcetest.Host) error { return rename(h.Net, "eth0", on) },
			beside: func(n *network.Namespace) error { return vlan(n, "beside0") },
		},
		{
			name: "macvlan",
			node: func(h *announcetest.Host) error {
				return add(h.Net, &netlink.Macvlan{LinkAttrs: over(h.Net, on), Mode: netlink.MACVLAN_MODE_BRIDGE})
			},
		},
		{
			name: "below a macvlan",
			node: func(h *announcetest.Host) error {
				if err := add(h.Net, &netlink.Macvlan{LinkAttrs: over(h.Net, "mac0"), Mode: netlink.MACVLAN_MODE_BRIDGE}); err != nil {
					return err
				}
				return rename(h.Net, "eth0", on)
			},
		},
		{
			name: "bridge",
			node: func(h *announcetest.Host) error {
				if err := h.Net.AddBridge(on); err != nil {
					return err
				}
				return enslave(h.Net, "eth0", on)
			},
		},
		{
			name: "bond, one of whose links goes down",
			node: func(h *announcetest.Host) error {
				if err := h.Attach("eth9"); err != nil {
					return err
				}
				bond := netlink.NewLinkBond(netlink.LinkAttrs{Name: on})
				bond.Mode, bond.Miimon = netlink.BOND_MODE_ACTIVE_BACKUP, 20
				if err := add(h.Net, bond); err != nil {
					return err
				}
				return errors.Join(enslave(h.Net, "eth0", on), enslave(h.Net, "eth9", on))
			},
			then: func(h *announcetest.Host) error { return h.Net.Down("eth0") },
		},
		{
			name: "vlan on a bridge",
			node: func(h *announcetest.Host) error {
				if err := errors.Join(h.Net.AddBridge("br0"), enslave(h.Net, "eth0", "br0")); err != nil {
					return err
				}
				index, err := h.Net.Index("br0")
				if err != nil {
					return err
				}
				a := netlink.NewLinkAttrs()
				a.Name, a.ParentIndex = on, index
				return add(h.Net, &netlink.Vlan{LinkAttrs: a, VlanId: 10})
			},
			client: func(n *network.Namespace) error { return vlan(n, on) },
			apart:  true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") != "1" {
				t.Skip("network namespaces need root; set REQUIRE_KERNEL=1 to fail instead")
			}
			l, err := announcetest.New(announcetest.Options{Nodes: 1, Addresses: addresses, Management: true, Log: os.Getenv("ANNOUNCE_LOG") != ""})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.Close)
			must := func(err error) {
				t.Helper()
				if errors.Is(err, unix.EOPNOTSUPP) {
					nstest.LeaveToVM(t, "this kernel has no such interface")
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			host := l.Nodes[0]
			must(tc.node(host))
			name := "eth0"
			if tc.client != nil {
				must(tc.client(l.Client))
				name = on
			}
			asker, err := announcetest.NewAskerOn(l.Client, name)
			must(err)
			t.Cleanup(asker.Close)
			must(l.Change(func(c *announcetest.Command) { c.Interfaces = []string{"lan?"} }))
			must(l.Start())
			answered := func() {
				t.Helper()
				for _, a := range addresses {
					once(t, l, asker, host, a)
				}
			}
			answered()
			if tc.apart {
				other, err := announcetest.NewAsker(l.Client)
				must(err)
				t.Cleanup(other.Close)
				for _, a := range addresses {
					if macs, err := other.Ask(a, 100*time.Millisecond); err != nil || len(macs) > 0 {
						t.Errorf("%v: answers from %v on the segment below: %v", a, macs, err)
					}
				}
			}
			if tc.beside != nil {
				must(tc.beside(l.Client))
				other, err := announcetest.NewAskerOn(l.Client, "beside0")
				must(err)
				t.Cleanup(other.Close)
				for _, a := range addresses {
					at, err := other.Question(a)
					must(err)
					time.Sleep(100 * time.Millisecond)
					if answers := append(other.Answers(a, at), asker.Answers(a, at)...); len(answers) > 0 {
						t.Errorf("%v: a question beside is answered: %v", a, answers)
					}
				}
			}
			if tc.then != nil {
				must(tc.then(host))
				answered()
			}
		})
	}
}

func rename(n *network.Namespace, from, to string) error {
	link, err := n.Links().LinkByName(from)
	if err != nil {
		return err
	}
	return errors.Join(n.Down(from), n.Links().LinkSetName(link, to), n.Up(to))
}

// once waits until the node answers for a on lan0, and asks that each question
// gets one answer, with lan0's hardware address.
func once(t *testing.T, l *announcetest.LAN, asker *announcetest.Asker, host *announcetest.Host, a netip.Addr) {
	t.Helper()
	why := ""
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		hw, err := host.Net.MAC(on)
		if err != nil {
			t.Fatal(err)
		}
		at, err := asker.Question(a)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		answers := asker.Answers(a, at)
		r := l.Last(a)[host.Name]
		if len(answers) == 1 && answers[0].MAC == wire.MAC(hw) && r.State == announce.Announced && r.Interface == on {
			return
		}
		why = fmt.Sprintf("answers %v, want one from %v; reported %+v", answers, wire.MAC(hw), r)
	}
	t.Errorf("%v: %s", a, why)
}
