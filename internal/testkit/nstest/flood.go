// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/testkit"
)

// Flood is SYN segments to a frontend, each from another port, as fast as they
// can be sent: enough to meet a moment of microseconds in which they are refused.
type Flood struct {
	fd            int
	stop          chan struct{}
	wait          sync.WaitGroup
	mu            sync.Mutex
	sent, refused int
}

// StartFlood sends from an IPv4 address of the namespace until the test or the
// Flood ends.
func (n *NS) StartFlood(t testing.TB, from netip.Addr, to netip.AddrPort) *Flood {
	t.Helper()
	f := &Flood{stop: make(chan struct{})}
	n.Must(t, func() (err error) {
		f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err == nil {
			tv := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
			err = unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
		}
		return errors.Join(err, unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	})
	f.wait.Go(func() {
		for port := uint16(1024); f.running(); port = max(port+1, 1024) {
			if unix.Sendto(f.fd, syn(from, to, port), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}) == nil {
				f.mu.Lock()
				f.sent++
				f.mu.Unlock()
			}
		}
	})
	f.wait.Go(func() {
		const header, flagsOffset, rst = 20, 13, 4
		packet := make([]byte, 1<<10)
		for f.running() {
			size, _, err := unix.Recvfrom(f.fd, packet, 0)
			if err == nil && size >= 2*header && [4]byte(packet[12:16]) == to.Addr().As4() && packet[header+flagsOffset]&rst != 0 {
				f.mu.Lock()
				f.refused++
				f.mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { f.End() })
	f.More(t)
	return f
}

func (f *Flood) running() bool {
	select {
	case <-f.stop:
		return false
	default:
		return true
	}
}

// More waits until some more segments were sent.
func (f *Flood) More(t testing.TB) {
	t.Helper()
	count := func() int {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.sent
	}
	until := count() + 100
	testkit.EventuallyTrue(t, 20*time.Second, "a hundred segments more", func() bool { return count() >= until })
}

// End stops it, and says how many segments were sent and how many refused.
func (f *Flood) End() (sent, refused int) {
	if f.running() {
		close(f.stop)
		f.wait.Wait()
		_ = unix.Close(f.fd)
	}
	return f.sent, f.refused
}

// syn is the first segment of a connection, without the IP header.
func syn(from netip.Addr, to netip.AddrPort, port uint16) []byte {
	const length = 20
	b := make([]byte, length)
	binary.BigEndian.PutUint16(b, port)
	binary.BigEndian.PutUint16(b[2:], to.Port())
	b[12], b[13] = length/4<<4, 2
	binary.BigEndian.PutUint16(b[14:], 1<<15)
	sum := uint32(unix.IPPROTO_TCP + length)
	for _, part := range [][]byte{from.AsSlice(), to.Addr().AsSlice(), b} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}
