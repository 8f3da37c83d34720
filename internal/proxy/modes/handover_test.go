// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// lan is one on which an address moves.
//
//	client (1500) -- (1300) router -- bridge -- first, second, node -- Pod
//
// The address is announced by the node at first, then by second, then by first: to
// the router that is a route.
type lan struct {
	client, router, first, second, node, pod *nstest.NS
	clients                                  int // that there have been
}

// lanFamily are the lan's addresses of one family.
type lanFamily struct {
	name                                        string
	clients, lan, pods                          netip.Prefix
	gateway, router, first, second, node, podIP netip.Addr
	pod, vip                                    netip.Addr
}

var lanFamilies = []lanFamily{{
	"IPv4", netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.244.1.0/24"),
	netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.12"), netip.MustParseAddr("192.0.2.13"),
	netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("203.0.113.200"),
}, {
	"IPv6", netip.MustParsePrefix("2001:db8:1::/64"), netip.MustParsePrefix("2001:db8:2::/64"), netip.MustParsePrefix("fd00:10:244:1::/64"),
	netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:2::1"), netip.MustParseAddr("2001:db8:2::12"), netip.MustParseAddr("2001:db8:2::13"),
	netip.MustParseAddr("2001:db8:2::11"), netip.MustParseAddr("fd00:10:244:1::1"), netip.MustParseAddr("fd00:10:244:1::2"), netip.MustParseAddr("2001:db8:3::200"),
}}

// large is what a client asks for, many segments of its path's MTU.
const large = 300_000

func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{nstest.NewNS(t), nstest.NewNS(t), nstest.NewNS(t), nstest.NewNS(t), nstest.Self(t), nstest.NewNS(t), 0}
	nstest.Cable(t, l.router, "client", l.client, "eth0")
	nstest.Cable(t, l.node, "pod", l.pod, "eth0")
	for name, ns := range map[string]*nstest.NS{"first": l.first, "second": l.second, "node": l.node} {
		nstest.Cable(t, l.router, name, ns, "lan")
	}
	l.router.Bridge(t, "br0", "first", "second", "node")
	l.router.Run(t, "ip", "link", "set", "client", "mtu", "1300")
	for _, ns := range []*nstest.NS{l.router, l.first, l.second, l.node} {
		ns.Must(t, func() error {
			// This is of the thread's namespace.
			return errors.Join(
				os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644),
				os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o644),
			)
		})
	}
	return l
}

// TestErrorsAboutMovedConnections: a client behind a path of a smaller MTU gets a
// large answer after its address has moved, once and then once more: the router's
// errors find the node that knows the connection, whatever the mode of that one, or
// of the one that announces it now.
func TestErrorsAboutMovedConnections(t *testing.T) {
	nstest.Require(t, "ip", "nft", "iptables-restore", "ip6tables-restore")
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	for _, mode := range here(t, kinds) {
		if nstest.InVM() && mode != IPVS {
			continue // the machine is slow
		}
		t.Run(string(mode), func(t *testing.T) {
			l := newLAN(t)
			l.program(t, kinds[mode], model.TCP)
			for _, f := range lanFamilies {
				t.Run(f.name, func(t *testing.T) {
					l.move(t, f, hop{l.node, f.node}, hop{l.second, f.second}, hop{l.first, f.first})
				})
				t.Run(f.name+", the node is the new announcer", func(t *testing.T) {
					l.translate(t, f)
					l.move(t, f, hop{l.first, f.first}, hop{l.node, f.node})
				})
			}
		})
	}
}

// program has node forward a Service's port 80 of these protocols to the Pod, until
// the test ends.
func (l *lan) program(t *testing.T, kind Kind, protocols ...model.Protocol) {
	t.Helper()
	b, err := kind.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Cleanup(context.WithoutCancel(t.Context())), b.Close(), conntrack.Cleanup()); err != nil {
			t.Error(err)
		}
	})
	d := model.Desired{Node: model.Node{Name: "node-1"}, Services: map[types.NamespacedName]*model.Service{}}
	svc := &model.Service{Name: types.NamespacedName{Namespace: "default", Name: "web"}}
	for _, f := range lanFamilies {
		l.addresses(t, f)
		d.Node.PodCIDRs = append(d.Node.PodCIDRs, f.pods)
		to := &model.Target{Endpoints: []model.Endpoint{{AddrPort: netip.AddrPortFrom(f.pod, 8080), Local: true, Weight: 1}}}
		for _, protocol := range protocols {
			svc.Frontends = append(svc.Frontends, model.Frontend{
				Key:  model.Key{Addr: f.vip, Port: 80, Protocol: protocol},
				Kind: model.LoadBalancerIP, Inside: to, Outside: to, Serving: []netip.AddrPort{to.Endpoints[0].AddrPort},
			})
		}
	}
	d.Services[svc.Name] = svc
	if _, err := b.Resync(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

// addresses gives everybody theirs, and their routes.
func (l *lan) addresses(t *testing.T, f lanFamily) {
	t.Helper()
	at := func(ns *nstest.NS, link string, a netip.Addr, p netip.Prefix) {
		ns.Address(t, link, netip.PrefixFrom(a, p.Bits()))
	}
	at(l.router, "client", f.gateway, f.clients)
	at(l.router, "br0", f.router, f.lan)
	at(l.first, "lan", f.first, f.lan)
	at(l.second, "lan", f.second, f.lan)
	at(l.node, "lan", f.node, f.lan)
	at(l.node, "pod", f.podIP, f.pods)
	at(l.pod, "eth0", f.pod, f.pods)
	everywhere := netip.PrefixFrom(model.FamilyOf(f.vip).Unspecified(), 0)
	l.client.Route(t, everywhere, f.gateway, "eth0")
	l.pod.Route(t, everywhere, f.podIP, "eth0")
	for _, ns := range []*nstest.NS{l.first, l.second, l.node} {
		ns.Route(t, everywhere, f.router, "lan")
	}
	// One byte asks for the large answer, and what is left of the connection ends it.
	l.pod.Must(t, func() error {
		listener, err := net.Listen("tcp", netip.AddrPortFrom(f.pod, 8080).String())
		if err != nil {
			return err
		}
		nstest.Serve(t, listener, func(c *net.TCPConn) {
			if _, err := io.ReadFull(c, make([]byte, 1)); err == nil {
				_, _ = c.Write(make([]byte, large))
			}
		})
		return nil
	})
}

// translate has first do what a mode would.
func (l *lan) translate(t *testing.T, f lanFamily) {
	family := map[model.Family]string{model.IPv4: "ip", model.IPv6: "ip6"}[model.FamilyOf(f.vip)]
	l.first.Run(t, "nft", fmt.Sprintf("add table %[1]s t; add chain %[1]s t d { type nat hook prerouting priority -100; };"+
		"add chain %[1]s t s { type nat hook postrouting priority 100; };"+
		"add rule %[1]s t d %[1]s daddr %[2]s tcp dport 80 dnat to %[3]s;"+
		"add rule %[1]s t s %[1]s daddr %[4]s masquerade", family, f.vip, netip.AddrPortFrom(f.pod, 8080), f.pod))
	l.first.Route(t, f.pods, f.node, "lan")
}

// hop is a node that announces the address.
type hop struct {
	ns   *nstest.NS
	addr netip.Addr
}

// move opens connections while one node announces the address, and asks for their
// answers when others do.
func (l *lan) move(t *testing.T, f lanFamily, hops ...hop) {
	announced := func(by hop) {
		l.router.Route(t, netip.PrefixFrom(f.vip, f.vip.BitLen()), by.addr, "br0")
	}
	announced(hops[0])
	var conns []net.Conn
	for i := range len(hops) - 1 {
		client := l.newClient(t, f)
		l.client.Must(t, func() error {
			c, err := (&net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: client.AsSlice()}}).Dial("tcp", netip.AddrPortFrom(f.vip, 80).String())
			conns = append(conns, c)
			return err
		})
		defer conns[i].Close()
	}
	for i, next := range hops[1:] {
		next.ns.Must(t, func() error {
			s, err := conntrack.OpenHandover()
			if err != nil {
				return err
			}
			return errors.Join(s.Pass(f.vip, hops[i].addr), s.Close())
		})
		announced(next)
		_ = conns[i].SetDeadline(time.Now().Add(patience))
		if _, err := conns[i].Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, conns[i])
		if err != nil || n != large {
			t.Errorf("after %s: %d of %d bytes, %v", many(i+1, "move"), n, large, err)
		}
	}
}

// newClient gives the client another address: the Pod remembers the path's MTU for
// each.
func (l *lan) newClient(t *testing.T, f lanFamily) netip.Addr {
	t.Helper()
	l.clients++
	client := f.gateway
	for range l.clients {
		client = client.Next()
	}
	l.client.Address(t, "eth0", netip.PrefixFrom(client, f.clients.Bits()))
	return client
}

func many(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
