// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/netlink"
	"github.com/causeway-lb/causeway/internal/netlink/attributes"
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
	return &Monitor{file: os.NewFile(uintptr(fd), "nft-monitor")}, nil
}

// Close ends Run.
func (m *Monitor) Close() error { return m.file.Close() }

// Change is what somebody else did to a table.
type Change struct {
	// Table is the zero Table when messages were lost: then it may be any.
	Table Table
	// Set is where elements came or went; empty if it was anything else.
	Set string

	elements []byte
}

// Elements calls each for the elements that came or went. It is to be called
// while the Change is being told of.
func (c *Change) Elements(each func(*RawElement)) {
	readElements(c.elements, func(e *RawElement) bool { each(e); return true })
}

// Run calls changed for what somebody else changed, until ctx ends: for all
// elements, and else at least once for every table.
func (m *Monitor) Run(ctx context.Context, changed func(*Change)) error {
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
			changed(&Change{})
		case errors.Is(rerr, unix.EINTR):
		case rerr != nil:
			return fmt.Errorf("read netfilter monitor: %w", rerr)
		default:
			report(buf[:n], changed)
		}
	}
}

// report reports the changes in messages, those of one table that are not about
// elements only once. In every message of nf_tables but the generation's,
// attribute 1 is the table.
func report(msgs []byte, changed func(*Change)) {
	var last Table
	for m, err := range netlink.Messages(msgs) {
		if err != nil || len(m.Body) < nfgenmsgLen {
			return
		}
		if m.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Type&0xff == unix.NFT_MSG_NEWGEN {
			continue
		}
		aboutElements := m.Type&0xff == unix.NFT_MSG_NEWSETELEM || m.Type&0xff == unix.NFT_MSG_DELSETELEM
		c := Change{Table: Table{Family: Family(m.Body[0])}}
		for a := attributes.Decode(m.Body[nfgenmsgLen:]); a.Next(); {
			switch {
			case a.Type == unix.NFTA_TABLE_NAME:
				c.Table.Name = attributes.String(a.Data)
			case aboutElements && a.Type == unix.NFTA_SET_ELEM_LIST_SET:
				c.Set = attributes.String(a.Data)
			}
		}
		if c.Set != "" {
			c.elements = m.Body[nfgenmsgLen:]
		}
		switch {
		case c.Table.Name == "":
		case c.Set != "":
			changed(&c)
		case c.Table != last:
			changed(&c)
			last = c.Table
		}
	}
}
