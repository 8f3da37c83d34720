// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// serve answers TCP and UDP at p with p's name and the source it sees, and
// notes SCTP packets.
func (n *network) serve(t *testing.T, p Place) {
	t.Helper()
	n.spaces[p].Must(t, func() error {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(endpointPort))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go serveTCP(l, p)
		u, err := net.ListenPacket("udp", ":"+strconv.Itoa(endpointPort))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = u.Close() })
		go serveUDP(u, p)
		for _, network := range []string{"ip4:132", "ip6:132"} {
			raw, err := net.ListenPacket(network, "")
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = raw.Close() })
			go n.noteSCTP(raw, p)
		}
		return nil
	})
}

func greet(p Place, a net.Addr) string {
	ap := netip.MustParseAddrPort(a.String())
	return string(p) + " " + ap.Addr().Unmap().String()
}

func serveTCP(l net.Listener, p Place) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, greet(p, c.RemoteAddr()))
		_ = c.Close()
	}
}

func serveUDP(u net.PacketConn, p Place) {
	buf := make([]byte, 64)
	for {
		_, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = u.WriteTo([]byte(greet(p, from)), from)
	}
}

func parseGreeting(b []byte) (answer, error) {
	who, source, ok := strings.Cut(string(b), " ")
	if !ok {
		return answer{}, fmt.Errorf("greeting %q", b)
	}
	a, err := netip.ParseAddr(source)
	return answer{Place(who), a}, err
}

func (n *network) connect(ns *nstest.NS, network string, local net.Addr, dst netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() error {
		var err error
		ctx, cancel := context.WithTimeout(context.Background(), n.patience)
		defer cancel()
		// Resolution and dialling stay on this thread, so the socket is in ns.
		d := net.Dialer{LocalAddr: local, FallbackDelay: -1}
		c, err = d.DialContext(ctx, network, dst.String())
		return err
	})
	return c, err
}

func (n *network) dialTCP(ns *nstest.NS, src netip.Addr, dst netip.AddrPort) (answer, error) {
	c, err := n.connect(ns, "tcp", &net.TCPAddr{IP: src.AsSlice()}, dst)
	if err != nil {
		return answer{}, asTimeout(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(n.patience))
	b, err := io.ReadAll(c)
	if err != nil {
		return answer{}, asTimeout(err)
	}
	return parseGreeting(b)
}

// dialUDP asks again while there is no answer: the kernel limits the rate of
// the ICMP messages that refuse.
func (n *network) dialUDP(ns *nstest.NS, src netip.Addr, dst netip.AddrPort) (answer, error) {
	c, err := n.connect(ns, "udp", &net.UDPAddr{IP: src.AsSlice()}, dst)
	if err != nil {
		return answer{}, asTimeout(err)
	}
	defer c.Close()
	b := make([]byte, 64)
	for deadline := time.Now().Add(n.patience); ; {
		_ = c.SetDeadline(time.Now().Add(min(n.patience, suspicion)))
		if _, err := c.Write([]byte("?")); err != nil {
			return answer{}, asTimeout(err)
		}
		k, err := c.Read(b)
		if err == nil {
			return parseGreeting(b[:k])
		}
		if err = asTimeout(err); !errors.Is(err, errTimeout) || time.Now().After(deadline) {
			return answer{}, err
		}
	}
}

func asTimeout(err error) error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return errTimeout
	}
	return err
}

// sendSCTP sends an INIT chunk, the first packet of an association, by a raw
// socket: kernels without SCTP sockets translate the protocol all the same.
// Who gets it says so; nobody answers.
func (n *network) sendSCTP(ns *nstest.NS, src netip.Addr, dst netip.AddrPort) (answer, error) {
	for len(n.sctp) > 0 {
		<-n.sctp
	}
	family := unix.AF_INET
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	err := ns.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, sockaddr(src)); err != nil {
			return err
		}
		return unix.Sendto(fd, sctpInit(sctpPort(), dst.Port()), 0, sockaddr(dst.Addr()))
	})
	if err != nil {
		return answer{}, err
	}
	select {
	case a := <-n.sctp:
		return a, nil
	case <-time.After(n.patience):
		return answer{}, errTimeout
	}
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

var lastSCTPPort uint16 = 40000

// sctpPort gives each association a source port of its own.
func sctpPort() uint16 {
	lastSCTPPort++
	return lastSCTPPort
}

// sctpInit is a common header and an INIT chunk (RFC 9260 sections 3.1, 3.3.2).
func sctpInit(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	b = binary.BigEndian.AppendUint32(b, 0)          // verification tag of an INIT
	b = append(b, 0, 0, 0, 0)                        // checksum
	b = append(b, 1, 0, 0, 20)                       // INIT, length
	b = binary.BigEndian.AppendUint32(b, 0xc0ffee01) // initiate tag
	b = binary.BigEndian.AppendUint32(b, 65536)      // receiver window
	b = append(b, 0, 1, 0, 1)                        // streams
	b = binary.BigEndian.AppendUint32(b, 1)          // initial TSN
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[8:], sum)
	return b
}

// noteSCTP says who got an INIT for the endpoints' port.
func (n *network) noteSCTP(raw net.PacketConn, p Place) {
	buf := make([]byte, 256)
	for {
		k, from, err := raw.ReadFrom(buf)
		if err != nil {
			return
		}
		if k < 12 || binary.BigEndian.Uint16(buf[2:]) != endpointPort {
			continue
		}
		if a, ok := netip.AddrFromSlice(from.(*net.IPAddr).IP); ok {
			n.sctp <- answer{p, a.Unmap()}
		}
	}
}
