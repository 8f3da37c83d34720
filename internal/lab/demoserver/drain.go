// SPDX-License-Identifier: Apache-2.0

package demoserver

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"github.com/causeway-lb/causeway/internal/drain"
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
	return errors.Join(drain.Refuse(l.TCPListener), l.SetDeadline(time.Now().Add(settle)))
}
