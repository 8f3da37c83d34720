// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// dialler opens connections in a namespace.
type dialler struct {
	ns   *nstest.NS
	addr netip.Addr
}

// dial connects from a port, 0 for any.
func (d dialler) dial(t *testing.T, to string, port int) net.Conn {
	t.Helper()
	var c net.Conn
	d.ns.Must(t, func() error {
		var err error
		c, err = (&net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: d.addr.AsSlice(), Port: port}}).Dial("tcp", to)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// says sends a byte and gives what comes of it: nil if it is echoed.
func says(c net.Conn, patience time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// echoTCP sends back what it gets, at an address of ns.
func echoTCP(t *testing.T, ns *nstest.NS, addr string) {
	t.Helper()
	ns.Must(t, func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		nstest.Serve(t, l, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		return nil
	})
}

// The client of a Service that is deleted hears of it: a Pod and a process of
// the node, at a ClusterIP, at a load balancer IP and at a NodePort.
//
//	client 10.244.1.9 -- node (rules) -- endpoint 198.51.100.10
func TestResetOfDeletedService(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	self, client, server := nstest.Self(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Cable(t, self, "client", client, "eth0")
	nstest.Cable(t, self, "server", server, "eth0")
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/"+path, []byte("1"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := nftables.New(nftables.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(b.Cleanup(t.Context()), b.Close(), Cleanup()); err != nil {
			t.Error(err)
		}
		if left := nstest.Run(t, "nft", "list", "tables"); strings.Contains(left, "causeway") {
			t.Errorf("cleaning up left %s", left)
		}
	}()
	for _, f := range []struct {
		name, pods, client, gateway, servers, node, server string
		frontends                                          []string // what is programmed
		dialled                                            []string // and how it is dialled
	}{{
		name: "IPv4", pods: "10.244.1.0/24", client: "10.244.1.9", gateway: "10.244.1.1",
		servers: "198.51.100.0/24", node: "198.51.100.1", server: "198.51.100.10",
		frontends: []string{"10.96.0.10:80", "192.0.2.200:80", "0.0.0.0:30080"},
		dialled:   []string{"10.96.0.10:80", "192.0.2.200:80", "198.51.100.1:30080"},
	}, {
		name: "IPv6", pods: "fd00:10:244:1::/64", client: "fd00:10:244:1::9", gateway: "fd00:10:244:1::1",
		servers: "2001:db8:1::/64", node: "2001:db8:1::1", server: "2001:db8:1::10",
		frontends: []string{"[fd00:10:96::10]:80", "[2001:db8::200]:80", "[::]:30080"},
		dialled:   []string{"[fd00:10:96::10]:80", "[2001:db8::200]:80", "[2001:db8:1::1]:30080"},
	}} {
		t.Run(f.name, func(t *testing.T) {
			pods, servers := netip.MustParsePrefix(f.pods), netip.MustParsePrefix(f.servers)
			addr := netip.MustParseAddr
			self.Address(t, "client", netip.PrefixFrom(addr(f.gateway), pods.Bits()))
			self.Address(t, "server", netip.PrefixFrom(addr(f.node), servers.Bits()))
			client.Address(t, "eth0", netip.PrefixFrom(addr(f.client), pods.Bits()))
			server.Address(t, "eth0", netip.PrefixFrom(addr(f.server), servers.Bits()))
			everywhere := netip.PrefixFrom(model.FamilyOf(addr(f.client)).Unspecified(), 0)
			client.Route(t, everywhere, addr(f.gateway), "eth0")
			server.Route(t, everywhere, addr(f.node), "eth0")
			// What is not translated leaves the node, to where nobody answers.
			self.Route(t, everywhere, addr(f.server), "server")
			// web leads to the endpoint at one port of the server.
			web := func(port uint16) (svc *model.Service, endpoint string) {
				endpoint = netip.AddrPortFrom(addr(f.server), port).String()
				echoTCP(t, server, endpoint)
				svc = &model.Service{Name: types.NamespacedName{Namespace: "default", Name: "web"}}
				for i, fe := range f.frontends {
					one := tcp(fe, endpoint).Frontends[0]
					one.Kind = []model.Kind{model.ClusterIP, model.LoadBalancerIP, model.NodePort}[i]
					svc.Frontends = append(svc.Frontends, one)
				}
				slices.SortFunc(svc.Frontends, func(a, b model.Frontend) int { return a.Key.Compare(b.Key) })
				return svc, endpoint
			}
			svc, endpoint := web(8080)
			elsewhere := netip.AddrPortFrom(ap(f.frontends[0]).Addr().Next(), 80).String()
			other := tcp(elsewhere, endpoint)
			other.Name.Name = "other"
			program := func(services ...*model.Service) {
				t.Helper()
				d := model.Desired{Node: model.Node{PodCIDRs: []netip.Prefix{pods}}, Services: map[types.NamespacedName]*model.Service{}}
				for _, s := range services {
					d.Services[s.Name] = s
				}
				if _, err := b.Resync(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			places := map[string]dialler{"Pod": {client, addr(f.client)}, "node": {self, addr(f.node)}}
			type open struct {
				name string
				from dialler
				to   string
				c    net.Conn
			}
			connect := func() (cs []open) {
				for place, d := range places {
					for _, to := range f.dialled {
						o := open{place + " to " + to, d, to, d.dial(t, to, 0)}
						if err := says(o.c, 5*time.Second); err != nil {
							t.Fatalf("%s: %v", o.name, err)
						}
						cs = append(cs, o)
					}
				}
				return cs
			}
			gone := Plan(model.Change{Name: svc.Name, Old: svc}, true)

			if _, err := (Table{}).Clean(gone); err != nil { // what an earlier run left
				t.Fatal(err)
			}
			// Without resets nobody tells the clients of a load balancer IP.
			program(svc, other)
			silent := places["Pod"].dial(t, f.dialled[1], 0)
			if err := says(silent, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			program(other)
			if n, err := (Table{}).Clean(gone); err != nil || n != 1 {
				t.Fatalf("Clean: %d, %v; want 1", n, err)
			}
			if err := says(silent, 500*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("without resets: %v, want silence; the test proves nothing", err)
			}
			_ = silent.(*net.TCPConn).SetLinger(0)
			_ = silent.Close()
			if _, err := (Table{}).Clean(gone); err != nil { // what its last segment began
				t.Fatal(err)
			}

			program(svc, other)
			bystander := places["Pod"].dial(t, elsewhere, 0)
			if err := says(bystander, 5*time.Second); err != nil {
				t.Fatal(err)
			}
			conns := connect()
			// While the endpoint only gets no new connections, it finishes those it has.
			idle, _ := web(8081)
			drain := Plan(model.Change{Name: svc.Name, Old: svc, New: draining(idle, endpoint)}, true)
			if n, err := (Table{Reset: true}).Clean(drain); err != nil || n != 0 {
				t.Errorf("Clean: %d, %v; want none of those that drain", n, err)
			}
			for _, o := range conns {
				if err := says(o.c, 5*time.Second); err != nil {
					t.Errorf("%s, while its endpoint drains: %v", o.name, err)
				}
			}
			program(other)
			if n, err := (Table{Reset: true}).Clean(gone); err != nil || n != len(conns) {
				t.Errorf("Clean: %d, %v; want %d", n, err, len(conns))
			}
			for _, o := range conns {
				if err := says(o.c, 5*time.Second); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: %v, want a reset", o.name, err)
				}
			}
			if err := says(bystander, 5*time.Second); err != nil {
				t.Errorf("a connection to another Service: %v", err)
			}

			// The Service comes back with another endpoint, and so do the clients,
			// from the same ports.
			program(idle, other)
			for _, o := range conns {
				port := o.c.LocalAddr().(*net.TCPAddr).Port
				_ = o.c.Close()
				again := o.from.dial(t, o.to, port)
				for range 3 {
					if err := says(again, 5*time.Second); err != nil {
						t.Errorf("%s, connected again: %v", o.name, err)
						break
					}
				}
			}
		})
	}
}
