// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// Refuse has the kernel drop SYN segments that come to l. Handshakes that have begun
// go on. A listener with Multipath TCP takes no filter.
func Refuse(l *net.TCPListener) error {
	// A socket's filter sees the TCP header first, and returns how much it keeps.
	const flagsOffset, synAck, syn, all = 13, 0x12, 0x02, 1 << 18
	program := []unix.SockFilter{
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
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(err, failed)
}
