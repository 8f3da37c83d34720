// SPDX-License-Identifier: Apache-2.0

package members

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ICMP echo (RFC 792, RFC 4443 section 4). The message is the header alone.
const (
	echoLength = 8

	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

// Socket options that package unix does not have (linux/icmp.h).
const (
	solRaw     = 255
	icmpFilter = 1
)

// echo probes the kernels of nodes.
type echo interface {
	// ask sends one request.
	ask(to netip.Addr)
	// answered returns the addresses that have answered since the last call. It does
	// not wait.
	answered() []netip.Addr
}

// echoer is echo by ICMP. An answer comes from the peer kernel's interrupt
// handler: it does not wait until busy cores give a process its turn. And answers
// are read in the caller's turn, so that none that is there is overlooked for want
// of one here. It is not safe for concurrent use.
type echoer struct {
	fd  int
	six bool
	id  uint16
	seq uint16
	buf [128]byte
}

// openEchoer needs CAP_NET_RAW. Answers to self are heard.
func openEchoer(self netip.Addr) (*echoer, error) {
	e := &echoer{six: self.Is6(), id: uint16(rand.Uint32())}
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if e.six {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w", err)
	}
	e.fd = fd
	if err := e.prepare(self); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// prepare has the socket take echo replies with this id alone.
func (e *echoer) prepare(self netip.Addr) error {
	program := []bpf.Instruction{
		bpf.LoadMemShift{Off: 0}, // the IPv4 header, which an IPv6 socket does not see
		bpf.LoadIndirect{Off: 4, Size: 2},
	}
	if e.six {
		var types unix.ICMPv6Filter // a set bit blocks
		for i := range types.Data {
			types.Data[i] = ^uint32(0)
		}
		types.Data[echoReply6/32] &^= 1 << (echoReply6 % 32)
		if err := unix.SetsockoptICMPv6Filter(e.fd, unix.SOL_ICMPV6, unix.ICMPV6_FILTER, &types); err != nil {
			return fmt.Errorf("filter ICMPv6 types: %w", err)
		}
		program = []bpf.Instruction{bpf.LoadAbsolute{Off: 4, Size: 2}}
	} else if err := unix.SetsockoptInt(e.fd, solRaw, icmpFilter, int(^uint32(1<<echoReply4))); err != nil {
		return fmt.Errorf("filter ICMP types: %w", err)
	}
	program = append(program,
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(e.id), SkipTrue: 1},
		bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: 1 << 16})
	raw, err := bpf.Assemble(program)
	if err != nil {
		return fmt.Errorf("assemble echo filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(e.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return fmt.Errorf("attach echo filter: %w", err)
	}
	if err := unix.Bind(e.fd, sockaddr(self)); err != nil {
		return fmt.Errorf("bind ICMP socket to %v: %w", self, err)
	}
	return nil
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// ask leaves errors alone: there will be no answer.
func (e *echoer) ask(to netip.Addr) {
	e.seq++
	b := make([]byte, echoLength)
	b[0] = echoRequest4
	if e.six {
		b[0] = echoRequest6 // the kernel fills in the checksum
	}
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	if !e.six {
		total := uint32(b[0])<<8 + uint32(e.id) + uint32(e.seq)
		total = total>>16 + total&0xffff
		binary.BigEndian.PutUint16(b[2:], ^uint16(total>>16+total&0xffff))
	}
	_ = unix.Sendto(e.fd, b, 0, sockaddr(to))
}

func (e *echoer) answered() []netip.Addr {
	var out []netip.Addr
	for {
		_, from, err := unix.Recvfrom(e.fd, e.buf[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return out
		}
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			out = append(out, netip.AddrFrom4(a.Addr))
		case *unix.SockaddrInet6:
			out = append(out, netip.AddrFrom16(a.Addr))
		}
	}
}

func (e *echoer) close() { _ = unix.Close(e.fd) }
