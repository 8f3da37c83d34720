// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/conntrack"
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// TestYield: once the tables yield, connection tracking knows of no SYN that this node
// has sent while no proxy listened, nor hears of another; the next proxy gets its
// repetition.
func TestYield(t *testing.T) {
	b := newNode(t, Config{})
	d := model.Desired{Services: map[types.NamespacedName]*model.Service{}}
	svc := &model.Service{Name: web}
	var dials []netip.AddrPort
	for _, at := range []struct{ frontend, pod string }{{frontendAddr, "10.244.1.2"}, {"fd00:10:96::10", "fd00:10:244:1::2"}} {
		frontend, pod := netip.MustParseAddr(at.frontend), netip.MustParseAddr(at.pod)
		if pod.Is6() {
			nstest.Loopback(t, netip.PrefixFrom(pod, 128).String())
			nstest.Self(t).Route(t, netip.MustParsePrefix("fd00:10:96::/112"), netip.Addr{}, "lo")
		}
		to := &model.Target{Endpoints: []model.Endpoint{{AddrPort: netip.AddrPortFrom(pod, 8080), Local: true, Weight: 1}}}
		svc.Frontends = append(svc.Frontends, model.Frontend{
			Key: model.Key{Addr: frontend, Port: 80, Protocol: model.TCP}, Inside: to, Outside: to, Serving: []netip.AddrPort{to.Endpoints[0].AddrPort},
		})
		dials = append(dials, netip.AddrPortFrom(frontend, 80))
	}
	d.Services[web] = svc
	track(t)
	mustSync(t, b, d)
	if err := b.proxy.close(); err != nil {
		t.Fatal(err)
	}
	var sockets []int
	begin := func() {
		for _, at := range dials {
			sockets = append(sockets, syn(t, at))
		}
	}
	noted := func(when string, want int) {
		t.Helper()
		for _, at := range dials {
			n := 0
			err := conntrack.List(conntrack.Filter{Protocol: unix.IPPROTO_TCP, To: at}, func(e *conntrack.Entry) error {
				if e.Destination == at {
					n++
				}
				return nil
			})
			if err != nil || n != want {
				t.Errorf("%s connection tracking has %d entries to %s (error %v), want %d", when, n, at, err, want)
			}
		}
	}
	begin()
	noted("without a proxy", 1)
	for range 2 {
		if err := Yield(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	noted("after the tables yielded", 0)
	begin()
	noted("behind tables that yielded", 0)
	next, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	mustSync(t, next, d)
	for _, fd := range sockets {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		for {
			n, err := unix.Poll(ready, int(patience/time.Millisecond))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if n != 1 || err != nil {
				t.Errorf("the repetition of a SYN found no proxy: %d sockets are ready, %v", n, err)
			}
			break
		}
	}
}

// Nothing is there to yield on most nodes.
func TestYieldWithoutTables(t *testing.T) {
	nstest.Require(t, "ip")
	if err := Yield(t.Context()); err != nil {
		t.Error(err)
	}
	if present, err := Present(); present || err != nil {
		t.Errorf("tables are there: %v, error %v", present, err)
	}
}

// track has the kernel track connections, as it does on every node with other rules.
func track(t *testing.T) {
	t.Helper()
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	var tx nft.Batch
	for _, f := range model.Families {
		table := nft.Table{Family: tableOf(f).Family, Name: "track"}
		tx.AddTable(table)
		chain := nft.Chain{Table: table, Name: "output", Hook: &nft.Hook{Type: "filter", Num: expr.HookOutput}}
		tx.AddChain(chain)
		tx.AppendRule(table, chain.Name, expr.For(table.Family).Tracked().Accept().Rule(""))
		t.Cleanup(func() {
			var tx nft.Batch
			tx.DeleteTable(table)
			if err := conn.Commit(&tx); err != nil {
				t.Error(err)
			}
		})
	}
	if err := conn.Commit(&tx); err != nil {
		t.Fatal(err)
	}
}

// syn has sent one to an address when it returns.
func syn(t *testing.T, to netip.AddrPort) int {
	t.Helper()
	family, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())})
	if to.Addr().Is4() {
		family, at = unix.AF_INET, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Connect(fd, at); !errors.Is(err, unix.EINPROGRESS) {
		t.Fatalf("connect to %s: %v, want that it begins", to, err)
	}
	return fd
}
