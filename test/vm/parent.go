// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

var errParent = errors.New("the parent process ended")

// watchParent cancels when the process that started this one ends, however it
// ends. A death signal would not do: the kernel sends that when the parent's
// *thread* ends, and a Go program's threads come and go.
func watchParent(ctx context.Context, cancel context.CancelCauseFunc) error {
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil {
		return fmt.Errorf("watch parent process %d: %w", parent, err)
	}
	if os.Getppid() != parent { // it ended, and the number may be somebody else's
		_ = unix.Close(fd)
		return errParent
	}
	go func() {
		defer unix.Close(fd)
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err == nil && n > 0 {
				cancel(errParent)
				return
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return nil
}
