// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"net"
	"net/netip"
	"sync"
)

// Limit closes connections at once that are more than total at a time, or more
// than perClient of one address.
func Limit(l net.Listener, total, perClient int) net.Listener {
	return &limited{Listener: l, total: total, perClient: perClient, clients: map[netip.Addr]int{}}
}

type limited struct {
	net.Listener
	total, perClient int

	mu      sync.Mutex
	all     int
	clients map[netip.Addr]int
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := addressOf(c)
		if l.take(client) {
			return &counted{Conn: c, give: sync.OnceFunc(func() { l.give(client) })}, nil
		}
		_ = c.Close()
	}
}

func addressOf(c net.Conn) netip.Addr {
	if tcp, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func (l *limited) take(client netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all >= l.total || l.clients[client] >= l.perClient {
		return false
	}
	l.all++
	l.clients[client]++
	return true
}

func (l *limited) give(client netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.clients[client]--; l.clients[client] == 0 {
		delete(l.clients, client)
	}
}

type counted struct {
	net.Conn
	give func()
}

func (c *counted) Close() error {
	defer c.give()
	return c.Conn.Close()
}
