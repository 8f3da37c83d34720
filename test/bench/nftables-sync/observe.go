// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/test/bench/proxybench"
)

// observer hears every nf_tables notification in the namespace. Both
// contenders' commits are seen the same way.
type observer struct {
	fd  int
	buf []byte
}

func newObserver() (*observer, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	tv := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}))
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen to nf_tables: %w", err)
	}
	return &observer{fd: fd, buf: make([]byte, 1<<20)}, nil
}

func (o *observer) close() { _ = unix.Close(o.fd) }

// drain forgets what was heard until now.
func (o *observer) drain() {
	for {
		if _, _, err := unix.Recvfrom(o.fd, o.buf, unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
			return
		}
	}
}

// await returns when a commit was announced that carries one of the patterns.
func (o *observer) await(ctx context.Context, limit time.Duration, patterns ...[]byte) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && ctx.Err() == nil; {
		n, _, err := unix.Recvfrom(o.fd, o.buf, 0)
		if err != nil {
			continue // nothing for a while, or more than the buffer holds
		}
		for _, p := range patterns {
			if bytes.Contains(o.buf[:n], p) {
				return nil
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("the kernel was not changed within %v", limit)
}

// endpointPatterns are how an endpoint appears in a commit: in an element of
// ours, or in the name of kube-proxy's chain for it.
func endpointPatterns(a netip.Addr) [][]byte {
	ours := binary.BigEndian.AppendUint16(a.AsSlice(), proxybench.EndpointPort)
	return [][]byte{ours, []byte("__" + a.String() + "/" + strconv.Itoa(proxybench.EndpointPort))}
}

// frontendPatterns are how a ClusterIP and port 80 over TCP appear: both have
// a map with that key.
func frontendPatterns(a netip.Addr) [][]byte {
	return [][]byte{proxybench.FrontendKey(a)}
}
