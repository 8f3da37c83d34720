// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
)

// serverPort is where the server accepts connections, at all its addresses.
const serverPort = proxybench.EndpointPort

// space is a network namespace without a name.
type space struct{ handle netns.NsHandle }

// do runs f in the namespace, on a thread that is thrown away after.
func (s *space) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(s.handle); err != nil {
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

func newSpace() (*space, error) {
	s := &space{}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		var err error
		s.handle, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("make namespace (needs root): %w", err)
	}
	return s, nil
}

// here is the namespace that this program runs in.
func here() (*space, error) {
	h, err := netns.Get()
	return &space{h}, err
}

// network is client, node and server in a row; the node is here.
type network struct {
	client, node, server *space
	listeners            []net.Listener
}

func newNetwork(ctx context.Context) (*network, error) {
	n := &network{}
	var err error
	if n.node, err = here(); err != nil {
		return nil, err
	}
	for _, s := range []**space{&n.client, &n.server} {
		if *s, err = newSpace(); err != nil {
			return nil, err
		}
	}
	if err := n.wire(ctx); err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *network) wire(ctx context.Context) error {
	peer := func(s *space) string {
		return "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(int(s.handle))
	}
	type step struct {
		in  *space
		cmd string
	}
	steps := []step{
		{n.node, "ip link add client type veth peer name eth0 netns " + peer(n.client)},
		{n.node, "ip link add server type veth peer name eth0 netns " + peer(n.server)},
		{n.node, "ip link set lo up"},
		{n.node, "ip address add " + proxybench.NodeAddress + "/32 dev lo"},
		{n.node, "ip address add 10.244.1.1/24 dev client"},
		{n.node, "ip address add 198.51.100.1/24 dev server"},
		{n.node, "ip link set client up"},
		{n.node, "ip link set server up"},
		{n.client, "ip address add " + clientAddr.String() + "/24 dev eth0"},
		{n.client, "ip link set eth0 up"},
		{n.client, "ip route add default via 10.244.1.1"},
		{n.server, "ip link set eth0 up"},
	}
	for _, a := range serverAddrs() {
		steps = append(steps, step{n.server, "ip address add " + a.String() + "/24 dev eth0"})
	}
	// Last, as it needs the server's address.
	steps = append(steps, step{n.server, "ip route add default via 198.51.100.1"})
	for _, s := range steps {
		err := s.in.do(func() error {
			args := strings.Fields(s.cmd)
			if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", s.cmd, err, out)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	err := n.node.do(func() error {
		return os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
	})
	return errors.Join(err, n.server.do(func() error { return n.listen(ctx) }))
}

// listen accepts and closes: by a reset, so that no TIME_WAIT piles up.
func (n *network) listen(ctx context.Context) error {
	for _, a := range serverAddrs() {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, serverPort).String())
		if err != nil {
			return err
		}
		n.listeners = append(n.listeners, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
	return nil
}

func (n *network) close() {
	for _, l := range n.listeners {
		_ = l.Close()
	}
	for _, s := range []*space{n.client, n.node, n.server} {
		if s != nil {
			_ = s.handle.Close()
		}
	}
}

// connect opens a connection, returns the time that took, and resets it.
func connect(to netip.AddrPort) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return 0, err
	}
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	start := time.Now()
	for {
		err = unix.Connect(fd, sa)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return time.Since(start), err
}
