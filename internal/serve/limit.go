// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// MaxConnections is how many connections a server of Causeway's has at once.
const MaxConnections = 128

// Limit gives a listener that keeps at most max connections open. When there is
// one more, the oldest one of the source that has the most is closed; a source is
// an IPv4 address or an IPv6 /64.
func Limit(l net.Listener, max int) net.Listener { return &limited{Listener: l, max: max} }

type limited struct {
	net.Listener
	max int

	mu   sync.Mutex
	open []*conn // oldest first
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, of: l, source: source(accepted.RemoteAddr())}
	l.mu.Lock()
	l.open = append(l.open, c)
	var victim *conn
	if len(l.open) > l.max {
		victim = l.victim()
	}
	l.mu.Unlock()
	if victim != nil {
		_ = victim.Close() // it is the client's loss
	}
	return c, nil
}

// victim is called with mu held.
func (l *limited) victim() *conn {
	count := map[netip.Prefix]int{}
	most := 0
	for _, c := range l.open {
		count[c.source]++
		most = max(most, count[c.source])
	}
	for _, c := range l.open {
		if count[c.source] == most {
			return c
		}
	}
	return nil
}

func source(a net.Addr) netip.Prefix {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 64
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
	once   sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(func() {
		c.of.mu.Lock()
		defer c.of.mu.Unlock()
		if i := slices.Index(c.of.open, c); i >= 0 {
			c.of.open = slices.Delete(c.of.open, i, i+1)
		}
	})
	return c.Conn.Close()
}
