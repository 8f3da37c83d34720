// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Listen hears of all changes to nf_tables until the test ends, as every agent
// does: what is told costs the kernel time.
func Listen(t testing.TB) {
	t.Helper()
	const tables = 1 << (unix.NFNLGRP_NFTABLES - 1)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval((50 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: tables}); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for news := make([]byte, 64<<10); ; {
			_, _, _ = unix.Recvfrom(fd, news, 0)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done; _ = unix.Close(fd) })
}
