// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// A client may use one of its ports for several frontends of one endpoint, and
// does by chance: each connection gets its own answers, also once one of them has
// ended, and if a change of modes lies between them.
func TestOneClientPort(t *testing.T) {
	nstest.Require(t, "ip", "iptables-restore", "ip6tables-restore")
	net := newNetwork(t)
	kinds := Kinds(Configs{IPVS: ipvs.Config{DrainInterval: 50 * time.Millisecond}})
	want := desired()
	for _, svc := range want.Services {
		for i := range svc.Frontends {
			f := &svc.Frontends[i]
			// An endpoint of each Service and family, so that all meet there.
			one := &model.Target{Endpoints: f.Inside.Endpoints[:1]}
			f.Inside, f.Outside, f.Serving = one, one, []netip.AddrPort{one.Endpoints[0].AddrPort}
		}
	}
	tried := here(t, kinds)
	port := firstPort
	for _, from := range tried {
		for _, to := range tried {
			if skipPort(from, to) {
				continue
			}
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) {
				onePort(t, net, kinds, want, from, to, port)
			})
			port += 100 // as the last ones rest
		}
	}
}

// skipPort leaves out the pairs that can find nothing that others do not: without
// a change, all modes but ipvs leave the choice of source ports to the kernel's NAT.
// The virtual machine is slow and tries only what needs ipvs: for that, iptables is as
// nftables, and what the userspace proxy carried has ended before ipvs begins.
func skipPort(from, to Mode) bool {
	if !nstest.InVM() {
		return from == to && from != IPVS
	}
	return from != IPVS && to != IPVS || from == IPTables || to == IPTables || from == Userspace
}

// firstPort is below those that the kernel chooses from.
const firstPort = 21000

func onePort(t *testing.T, net *network, kinds map[Mode]Kind, want model.Desired, from, to Mode, port int) {
	var here, there []*connection
	defer func() {
		for _, c := range append(here, there...) {
			_ = c.Close()
		}
	}()
	// talk dials these frontends, and each client those of a protocol and family
	// from one port.
	talk := func(in *[]*connection, frontends ...model.Kind) {
		t.Helper()
		for i, who := range []string{"client", "node", "Pod"} {
			for j, network := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
				for _, d := range mixed {
					if d.network != network || !slices.Contains(frontends, d.kind) {
						continue
					}
					net.clients[who].Must(t, func() error {
						c, err := openFrom(d, port+4*i+j)
						if err != nil {
							return fmt.Errorf("from the %s to %s: %w", who, d, err)
						}
						*in = append(*in, c)
						return nil
					})
				}
			}
		}
	}
	hear := func(when string, all []*connection) {
		t.Helper()
		for _, c := range all {
			if err := c.say(when); err != nil {
				t.Errorf("%s: %s from %s to %s: %v", when, c.LocalAddr().Network(), c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
	}
	use := inUseFor(t, kinds, from, want)
	talk(&here, model.ClusterIP, model.NodePort)
	hear("in one mode", here)
	if from != to {
		if err := use.Close(); err != nil {
			t.Fatal(err)
		}
		use = inUseFor(t, kinds, to, want)
		// Datagrams are promised no more than that the next one is answered, by whomever;
		// connections through the userspace proxy end with it.
		here = keepTCP(here, from == Userspace)
	}
	talk(&there, model.LoadBalancerIP) // an external IP is programmed alike
	hear("in two modes", append(here, there...))
	for _, c := range there {
		_ = c.Close()
	}
	there = nil
	hear("when others have ended", here)
	if err := use.Cleanup(t.Context()); err != nil {
		t.Error(err)
	}
	if err := use.Close(); err != nil {
		t.Error(err)
	}
}

// keepTCP closes what carries datagrams, or all.
func keepTCP(all []*connection, none bool) (kept []*connection) {
	for _, c := range all {
		if _, is := c.Conn.(*net.TCPConn); is && !none {
			kept = append(kept, c)
		} else {
			_ = c.Close()
		}
	}
	return kept
}

// openFrom dials from a port, which others may be dialling from.
func openFrom(to dial, port int) (*connection, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: port}, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if err == nil {
			err = ctlErr
		}
		return err
	}}
	if strings.HasPrefix(to.network, "udp") {
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	conn, err := d.Dial(to.network, to.addr)
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReader(conn)}, nil
}
