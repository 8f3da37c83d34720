// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// A segment of the endpoint that connection tracking finds INVALID must not
// reach the client untranslated: the client would answer a connection that it
// does not know with a reset, and the endpoint would end the real one
// (kubernetes#74839).
//
//	client 10.244.1.9 -- node (rules) -- endpoint 198.51.100.10
func TestInvalidSegmentsDoNotResetConnections(t *testing.T) {
	b := newBackend(t)
	self, client, server := nstest.Self(t), nstest.NewNS(t), nstest.NewNS(t)
	nstest.Cable(t, self, "client", client, "eth0")
	nstest.Cable(t, self, "server", server, "eth0")
	clientIP, serverIP := netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("198.51.100.10")
	self.Address(t, "client", netip.MustParsePrefix("10.244.1.1/24"))
	self.Address(t, "server", netip.MustParsePrefix("198.51.100.1/24"))
	client.Address(t, "eth0", netip.PrefixFrom(clientIP, 24))
	server.Address(t, "eth0", netip.PrefixFrom(serverIP, 24))
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	client.Route(t, everywhere, netip.MustParseAddr("10.244.1.1"), "eth0")
	server.Route(t, everywhere, netip.MustParseAddr("198.51.100.1"), "eth0")
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	target := &model.Target{Endpoints: []model.Endpoint{{AddrPort: netip.AddrPortFrom(serverIP, 8080), Weight: 1}}}
	svc := &model.Service{Name: name(0), Frontends: []model.Frontend{{
		Key: model.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: model.TCP}, Inside: target, Outside: target,
	}}}
	mustSync(t, b, model.Desired{
		Node:     model.Node{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}},
		Services: map[types.NamespacedName]*model.Service{svc.Name: svc},
	})
	defer mustCleanup(t, b)

	var accepted chan net.Conn
	server.Must(t, func() error {
		l, err := net.Listen("tcp", ":8080")
		accepted = make(chan net.Conn, 1)
		go func() {
			defer l.Close()
			if c, err := l.Accept(); err == nil {
				accepted <- c
			}
		}()
		return err
	})
	var conn net.Conn
	client.Must(t, func() error {
		var err error
		conn, err = net.DialTimeout("tcp", "10.96.0.10:80", 5*time.Second)
		return err
	})
	defer conn.Close()
	endpoint := <-accepted
	defer endpoint.Close()
	port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	ack := receivedUpTo(t, endpoint.(*net.TCPConn))
	server.Must(t, func() error { return sendSegments(serverIP, clientIP, 8080, port, ack) })

	// The connection still carries data both ways.
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		exchange(t, conn, endpoint)
		exchange(t, endpoint, conn)
	}
}

func mustCleanup(t *testing.T, b *Backend) {
	t.Helper()
	if err := backendtest.Cleanup(t.Context(), b); err != nil {
		t.Error(err)
	}
}

func exchange(t *testing.T, from, to net.Conn) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	_, _ = from.SetDeadline(deadline), to.SetDeadline(deadline)
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
		t.Fatalf("read: %v", err)
	}
}

// receivedUpTo gives the sequence number that c expects next: the one that a
// reset must have to be believed (RFC 5961 section 3.2).
func receivedUpTo(t *testing.T, c *net.TCPConn) uint32 {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var seq int
	cerr := raw.Control(func(fd uintptr) {
		const receiveQueue, offWithoutProbe = 1, -1
		set := func(opt, value int) {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, opt, value)
			}
		}
		set(unix.TCP_REPAIR, 1)
		set(unix.TCP_REPAIR_QUEUE, receiveQueue)
		if err == nil {
			seq, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
		set(unix.TCP_REPAIR, offWithoutProbe)
	})
	if err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	return uint32(seq)
}

// sendSegments sends segments with flags that no segment has, SYN with FIN,
// and with the right acknowledgement.
func sendSegments(from, to netip.Addr, fromPort, toPort uint16, ack uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for i := range uint32(5) {
		b := binary.BigEndian.AppendUint16(nil, fromPort)
		b = binary.BigEndian.AppendUint16(b, toPort)
		b = binary.BigEndian.AppendUint32(b, 0x10000000*(i+1))
		b = binary.BigEndian.AppendUint32(b, ack)
		b = append(b, 5<<4, 0x13, 0xff, 0xff, 0, 0, 0, 0) // length, ACK SYN FIN, window, checksum
		binary.BigEndian.PutUint16(b[16:], tcpChecksum(from, to, b))
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return err
		}
	}
	return nil
}

// tcpChecksum is RFC 9293 section 3.1's, over the pseudo-header and segment.
func tcpChecksum(from, to netip.Addr, segment []byte) uint16 {
	b := append(from.AsSlice(), to.AsSlice()...)
	b = append(b, 0, unix.IPPROTO_TCP)
	b = binary.BigEndian.AppendUint16(b, uint16(len(segment)))
	b = append(b, segment...)
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
