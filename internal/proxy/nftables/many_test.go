// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// manyPods makes a whole range of each family local and answers on every
// address of it with the address that was reached.
func manyPods(t *testing.T) {
	t.Helper()
	for _, r := range [][]string{{"-4", "10.244.9.0/24"}, {"-6", "fd00:10:244:9::/64"}} {
		nstest.Run(t, "ip", r[0], "route", "add", "local", r[1], "dev", "lo")
		t.Cleanup(func() { nstest.Run(t, "ip", r[0], "route", "del", "local", r[1], "dev", "lo") })
	}
	l, err := net.Listen("tcp", "[::]:8080")
	if err != nil {
		t.Fatal(err)
	}
	nstest.Serve(t, l, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().String())
	})
}

// from dials from one client address and gives the endpoint that answers.
func from(t *testing.T, client, frontend netip.Addr) netip.Addr {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: client.AsSlice()}, Control: freely}
	c, err := d.Dial("tcp", netip.AddrPortFrom(frontend, 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	// A reset leaves no connection waiting: thousands are made.
	_ = c.(*net.TCPConn).SetLinger(0)
	a, err := netip.ParseAddr(string(buf[:n]))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// freely lets a socket have an address of a range that is local as a whole.
func freely(network, _ string, raw syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) })
	return errors.Join(controlErr, err)
}

// More endpoints than get one slot each: every one of them gets connections,
// none that is gone does, and a client with affinity stays with its own.
func TestManyEndpointsWithPackets(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	manyPods(t)
	nstest.Everywhere(t)
	nstest.Run(t, "ip", "-6", "route", "add", "local", "fd00:10:96::/64", "dev", "lo")
	defer nstest.Run(t, "ip", "-6", "route", "del", "local", "fd00:10:96::/64", "dev", "lo")

	for _, f := range []struct{ frontend, pods, client string }{
		{"10.96.0.0", "10.244.9.%d", "10.244.9.%d"},
		{"fd00:10:96::10", "fd00:10:244:9::%d", "fd00:10:244:9::%d"},
	} {
		frontend := netip.MustParseAddr(f.frontend)
		client := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf(f.client, 200+i)) }
		// set programs the Service with the pods from first to last.
		set := func(first, last int, affinity time.Duration) map[netip.Addr]bool {
			target, pods := &model.Target{Affinity: affinity}, map[netip.Addr]bool{}
			for i := first; i <= last; i++ {
				a := netip.MustParseAddr(fmt.Sprintf(f.pods, i))
				pods[a] = true
				target.Endpoints = append(target.Endpoints, model.Endpoint{AddrPort: netip.AddrPortFrom(a, 8080), Local: true, Weight: 1})
			}
			mustSync(t, b, model.Desired{Services: map[types.NamespacedName]*model.Service{name(0): {
				Name: name(0), Frontends: []model.Frontend{{
					Key: model.Key{Addr: frontend, Port: 80, Protocol: model.TCP}, Inside: target, Outside: target,
				}},
			}}}, name(0))
			return pods
		}
		// Each endpoint has more than one slot in two hundred: to miss one
		// of them by chance in so many dials does not happen.
		const atMost, atLeast = 5000, 500
		for _, n := range []int{len(exact), len(exact) + 1, 70, 130} {
			for _, first := range []int{1, 2} { // and without the first one
				pods := set(first, n, 0)
				reached := map[netip.Addr]int{}
				for made := 0; made < atLeast || len(reached) < len(pods) && made < atMost; made++ {
					a := from(t, client(made%50), frontend)
					if !pods[a] {
						t.Fatalf("endpoints %d to %d: reached %s", first, n, a)
					}
					reached[a]++
				}
				if len(reached) != len(pods) {
					t.Errorf("endpoints %d to %d: %d of %d reached by %d connections", first, n, len(reached), len(pods), atMost)
				}
			}
		}

		set(1, 70, time.Hour)
		homes, used := make([]netip.Addr, 50), map[netip.Addr]bool{}
		for i := range homes {
			homes[i] = from(t, client(i), frontend)
			used[homes[i]] = true
		}
		pods := set(11, 80, time.Hour)
		for round := range 3 {
			for i, home := range homes {
				switch got := from(t, client(i), frontend); {
				case !pods[got]:
					t.Errorf("a client is led to %s, which is gone", got)
				case pods[home] && got != home:
					t.Errorf("round %d: a client is led to %s, want %s, which is still there", round, got, home)
				default:
					homes[i] = got
				}
			}
		}
		if len(used) < 20 {
			t.Errorf("50 clients are led to %d endpoints only", len(used))
		}
	}
}

// An endpoint of nine times the weight gets nine times the connections.
func TestWeightsWithPackets(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	manyPods(t)
	nstest.Everywhere(t)
	light, heavy := netip.MustParseAddr("10.244.9.1"), netip.MustParseAddr("10.244.9.2")
	target := &model.Target{Endpoints: []model.Endpoint{
		{AddrPort: netip.AddrPortFrom(light, 8080), Local: true, Weight: 1},
		{AddrPort: netip.AddrPortFrom(heavy, 8080), Local: true, Weight: 9},
	}}
	frontend := netip.MustParseAddr("10.96.0.0")
	mustSync(t, b, model.Desired{Services: map[types.NamespacedName]*model.Service{name(0): {
		Name: name(0), Frontends: []model.Frontend{{
			Key: model.Key{Addr: frontend, Port: 80, Protocol: model.TCP}, Inside: target, Outside: target,
		}},
	}}})
	// Of 600, 60 are for the light one; less than 20 or more than 110 does not
	// happen by chance.
	reached := map[netip.Addr]int{}
	for range 600 {
		reached[from(t, netip.MustParseAddr("10.244.9.200"), frontend)]++
	}
	if n := reached[light]; n < 20 || n > 110 || n+reached[heavy] != 600 {
		t.Errorf("of 600 connections %v, want about 60 to %s", reached, light)
	}
}
