// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// settle is how long handshakes may take that have begun.
const settle = 200 * time.Millisecond

// errDrained ends a server's accepting, which would go on after a time-out.
var errDrained = errors.New("no connection is taken any more")

// Listen opens a TCP listener that Refuse can be used on.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return config.Listen(ctx, "tcp", address)
}

// Serve has srv serve HTTP/1 until ctx ends. Then no client is cut off that the
// kernel had taken a connection of: those that wait are accepted, and on each the
// request that is being sent, or the first one if none has come yet, is answered,
// if that takes no longer than last. Whatever is open then is closed. First
// segments are dropped meanwhile; their clients repeat them after a second, and
// reach who serves then.
//
// http.Server.Shutdown does none of that alone: it resets connections that wait, and
// closes others without an answer if their first request is read after it began.
//
// The server accepts from wrap(l), if wrap is not nil. Serve closes l, and srv cannot
// be used again. Connections that come at the end to a listener which Refuse cannot
// be used on may be reset; Listen opens one.
func Serve(ctx context.Context, srv *http.Server, l net.Listener, wrap func(net.Listener) net.Listener, last time.Duration) error {
	busy := watch(srv)
	accepting := &listener{Listener: l}
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		drained <- accepting.drain()
		srv.SetKeepAlivesEnabled(false) // answers end their connections; idle ones are closed
	})
	var outer net.Listener = accepting
	if wrap != nil {
		outer = wrap(outer)
	}
	if err := srv.Serve(outer); stop() {
		return errors.Join(err, ignoreClosed(l.Close()), srv.Close())
	}
	err := <-drained
	// What was accepted is known to busy since Serve has returned.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), last)
	defer cancel()
	busy.wait(end)
	return errors.Join(err, ignoreClosed(srv.Close()))
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// connections are those that a request is awaited on for the first time, or being
// answered.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
	none chan struct{} // closed when there are none, if somebody waits
}

// watch is told by srv.
func watch(srv *http.Server) *connections {
	c := &connections{open: map[net.Conn]struct{}{}}
	next := srv.ConnState
	srv.ConnState = func(conn net.Conn, state http.ConnState) {
		c.note(conn, state)
		if next != nil {
			next(conn, state)
		}
	}
	return c
}

func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew, http.StateActive:
		c.open[conn] = struct{}{}
		return
	}
	delete(c.open, conn)
	if len(c.open) == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// wait returns when there are none, or ctx ends. One caller at a time.
func (c *connections) wait(ctx context.Context) {
	c.mu.Lock()
	if len(c.open) == 0 {
		c.mu.Unlock()
		return
	}
	none := make(chan struct{})
	c.none = none
	c.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

// listener is a TCP listener whose deadline ends it.
type listener struct {
	net.Listener
	refusing atomic.Bool
}

// Accept gives errDrained when nothing waits any more after drain.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err == nil && l.refusing.Load() {
			err = Accepted(c.(*net.TCPConn))
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return c, err
		}
		if !l.refusing.Load() {
			return nil, errDrained // more may come for ever
		}
		// A deadline that has passed ends Accept although somebody waits.
		tcp := l.Listener.(*net.TCPListener)
		waiting, err := Waiting(tcp)
		if err != nil {
			return nil, err
		}
		if waiting == 0 {
			return nil, errDrained
		}
		if err := tcp.SetDeadline(time.Now().Add(settle)); err != nil {
			return nil, err
		}
	}
}

// drain has Accept end when what the kernel has taken is accepted.
func (l *listener) drain() error {
	tcp, ok := l.Listener.(*net.TCPListener)
	if !ok {
		return ignoreClosed(l.Close())
	}
	l.refusing.Store(Refuse(tcp) == nil)
	return tcp.SetDeadline(time.Now().Add(settle))
}
