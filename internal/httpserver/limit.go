// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Limit returns a listener that keeps at most total connections open, and at most
// perClient of one source, which is an IPv4 address or an IPv6 /64. One more of a
// source closes the oldest that this has; one more in all closes the oldest of the
// source that has the most.
func Limit(l net.Listener, total, perClient int) net.Listener {
	return &limited{Listener: l, total: total, perClient: perClient, open: map[netip.Prefix][]*conn{}}
}

type limited struct {
	net.Listener
	total, perClient int

	mu       sync.Mutex
	accepted uint64
	all      int
	open     map[netip.Prefix][]*conn // oldest first
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, of: l, source: source(accepted.RemoteAddr())}
	if victim := l.take(c); victim != nil {
		_ = victim.Close() // it is the client's loss
	}
	return c, nil
}

// take enters c, and returns the connection that is to be closed for it, or nil.
func (l *limited) take(c *conn) *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepted++
	c.number = l.accepted
	l.open[c.source] = append(l.open[c.source], c)
	l.all++
	var victim *conn
	switch own := l.open[c.source]; {
	case len(own) > l.perClient:
		victim = own[0]
	case l.all > l.total:
		victim = l.oldestOfMost()
	default:
		return nil
	}
	l.drop(victim)
	return victim
}

// oldestOfMost is called with mu held.
func (l *limited) oldestOfMost() *conn {
	var most []*conn
	for _, open := range l.open {
		if len(open) > len(most) || len(open) == len(most) && open[0].number < most[0].number {
			most = open
		}
	}
	return most[0]
}

// drop is called with mu held.
func (l *limited) drop(c *conn) {
	open := l.open[c.source]
	i := slices.Index(open, c)
	if i < 0 {
		return // before
	}
	l.all--
	if len(open) == 1 {
		delete(l.open, c.source)
		return
	}
	l.open[c.source] = slices.Delete(open, i, i+1)
}

func source(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr, bits := tcp.AddrPort().Addr().Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// conn leaves the limited's books when it is closed.
type conn struct {
	net.Conn
	of     *limited
	source netip.Prefix
	number uint64 // in the order in which they were accepted
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.of.mu.Lock()
	c.of.drop(c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
