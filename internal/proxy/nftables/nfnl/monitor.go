// SPDX-License-Identifier: Apache-2.0

package nfnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Monitor hears of changes to tables by other sockets than one's own.
type Monitor struct {
	file *os.File
}

// ignorePort is a socket filter that lets messages through unless their
// nlmsg_pid is port, so that the kernel does not queue one's own changes.
func ignorePort(port uint32) []unix.SockFilter {
	const pidOffset = 12
	return []unix.SockFilter{
		// BPF loads big endian; the header is in host order.
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: pidOffset},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: hostToBPF(port), Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
}

func hostToBPF(v uint32) uint32 {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return bits.ReverseBytes32(v)
	}
	return v
}

// NewMonitor listens in the network namespace of the calling thread to
// changes that the socket with port id own did not make. Close it.
func NewMonitor(own uint32) (*Monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netfilter monitor: %w", err)
	}
	prog := ignorePort(own)
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: (*unix.SockFilter)(unsafe.Pointer(&prog[0]))})
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set up netfilter monitor: %w", err)
	}
	return &Monitor{file: os.NewFile(uintptr(fd), "nfnl-monitor")}, nil
}

// Close ends Run.
func (m *Monitor) Close() error { return m.file.Close() }

// Run calls changed for every table that somebody else changed, and with the
// zero Table when messages were lost, until ctx ends.
func (m *Monitor) Run(ctx context.Context, changed func(Table)) error {
	stop := context.AfterFunc(ctx, func() { _ = m.file.Close() })
	defer stop()
	raw, err := m.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("run netfilter monitor: %w", err)
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			return !errors.Is(rerr, unix.EAGAIN)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read netfilter monitor: %w", err)
		case errors.Is(rerr, unix.ENOBUFS):
			changed(Table{})
		case errors.Is(rerr, unix.EINTR):
		case rerr != nil:
			return fmt.Errorf("read netfilter monitor: %w", rerr)
		default:
			report(buf[:n], changed)
		}
	}
}

// report names the table of each message once. In every message of nf_tables
// but the generation's, attribute 1 is the table.
func report(msgs []byte, changed func(Table)) {
	var last Table
	for off := 0; off+unix.NLMSG_HDRLEN+nfgenmsgLen <= len(msgs); {
		m := header(msgs[off:])
		if int(m.Len) < unix.NLMSG_HDRLEN+nfgenmsgLen || off+int(m.Len) > len(msgs) {
			return
		}
		body := msgs[off+unix.NLMSG_HDRLEN : off+int(m.Len)]
		off += align4(int(m.Len))
		if m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Type&0xff == unix.NFT_MSG_NEWGEN {
			continue
		}
		t := Table{Family: Family(body[0])}
		Attrs(body[nfgenmsgLen:], func(typ uint16, data []byte) {
			if typ == unix.NFTA_TABLE_NAME {
				t.Name = CString(data)
			}
		})
		if t != last && t.Name != "" {
			changed(t)
			last = t
		}
	}
}
