// SPDX-License-Identifier: Apache-2.0

package demoserver

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long handshakes may take that have begun.
const settle = 200 * time.Millisecond

// errDrained ends the accepting. The server would try again after a time-out.
var errDrained = errors.New("no connection is taken any more")

// draining is a listener whose deadline ends it.
type draining struct{ *net.TCPListener }

func open(ctx context.Context, address string) (draining, error) {
	config := net.ListenConfig{}
	config.SetMultipathTCP(false) // its sockets take no filter
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return draining{}, err
	}
	return draining{l.(*net.TCPListener)}, nil
}

func (l draining) Accept() (net.Conn, error) {
	c, err := l.TCPListener.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errDrained
	}
	return c, err
}

// drain has the kernel take no new connection, and Accept end when those that it
// has taken are accepted: closing a listener resets those that wait there. First
// segments are dropped; their clients repeat them after a second, and are refused.
func (l draining) drain() error {
	const flagsOffset, synAck, syn, all = 13, 0x12, 0x02, 1 << 18
	drop := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flagsOffset},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: synAck},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K},
		{Code: unix.BPF_RET | unix.BPF_K, K: all},
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(drop)), Filter: &drop[0]})
	})
	return errors.Join(err, failed, l.SetDeadline(time.Now().Add(settle)))
}
