// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Refuse has the kernel drop SYN segments that come to l. Handshakes that have begun
// go on; without CAP_NET_ADMIN, Accepted is to be called on their connections. A
// listener with Multipath TCP takes no filter.
//
// A socket's filter is what fits, but a kernel may want CAP_NET_ADMIN for it. Without,
// the listener wants segments that no router has passed on and whose TTL is 255
// (RFC 5082), where everybody sends 64 or 128. Connections inherit that.
func Refuse(l *net.TCPListener) error {
	return control(l, func(fd int) error {
		err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, noSYN())
		if errors.Is(err, unix.EPERM) {
			err = wantTTL(fd, 255)
		}
		return err
	})
}

// Accepted has a connection that was accepted after Refuse take segments of every TTL,
// which its client repeats.
func Accepted(c *net.TCPConn) error {
	return control(c, func(fd int) error { return wantTTL(fd, 0) })
}

// Waiting returns how many connections wait to be accepted.
func Waiting(l *net.TCPListener) (int, error) {
	var info *unix.TCPInfo
	err := control(l, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count the connections that wait: %w", err)
	}
	return int(info.Unacked), nil // of a listener: the length of its queue
}

// noSYN is a filter that drops SYN segments.
func noSYN() *unix.SockFprog {
	// It sees the TCP header first, and returns how much is kept.
	const flagsOffset, synAck, syn, all = 13, 0x12, 0x02, 1 << 18
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flagsOffset},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: synAck},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
	}
	return &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
}

// wantTTL sets the least TTL or hop limit of a socket's segments. An IPv6 socket may
// have IPv4 peers.
func wantTTL(fd, least int) error {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, least)
	}
	return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, least))
}

func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	return errors.Join(err, failed)
}
