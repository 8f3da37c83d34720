// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const tcp = "TCP" // the metrics' label

// accept takes connections that the kernel gives to one view's socket: their
// local address is what the client dialled.
func (p *proxy) accept(l *net.TCPListener, v view) {
	for {
		client, err := l.AcceptTCP()
		switch {
		case err == nil:
			p.carried.Add(1)
			p.wait.Go(func() {
				defer p.carried.Add(-1)
				p.carry(client, v)
			})
		case errors.Is(err, net.ErrClosed) || !p.pause():
			return
		}
	}
}

// carry leads one connection to an endpoint and moves its data until it ends.
func (p *proxy) carry(client *net.TCPConn, v view) {
	// From now on, closing resets: should this process die, nobody takes half an
	// answer for a whole one.
	_ = client.SetLinger(0)
	if !p.keep(client) {
		_ = client.Close()
		return
	}
	defer p.forget(client)
	defer client.Close()
	at := client.LocalAddr().(*net.TCPAddr).AddrPort()
	from := client.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	f := p.find(at, model.TCP)
	if f == nil {
		p.metrics.refused.WithLabelValues(tcp, reasonNoService).Inc()
		return
	}
	if !p.budget.take(costTCP, f.name(), time.Now()) {
		p.metrics.refused.WithLabelValues(tcp, reasonLimit).Inc()
		return
	}
	defer p.budget.give(costTCP)
	server, endpoint := p.connect(f, v, from)
	if server == nil {
		p.metrics.refused.WithLabelValues(tcp, reasonNoEndpoint).Inc()
		return
	}
	defer server.Close()
	_ = server.SetLinger(0)
	if !p.keep(server) {
		return
	}
	defer p.forget(server)
	c := &carried{client: from, endpoint: endpoint, ends: []io.Closer{client, server}}
	if !f.hold(c, p.cfg.ResetTCP) {
		return
	}
	defer f.release(c)
	p.metrics.accepted.WithLabelValues(tcp).Inc()
	open := p.metrics.open.WithLabelValues(tcp)
	open.Inc()
	defer open.Dec()
	relay(client, server)
}

// carried is a TCP connection by way of the proxy.
type carried struct {
	client   netip.Addr
	endpoint netip.AddrPort
	ends     []io.Closer
}

// end resets both ends.
func (c *carried) end() {
	for _, e := range c.ends {
		_ = e.Close()
	}
}

// hold has set end c when it must. It returns false if that is so already: the
// endpoint may have gone since it was picked.
func (f *frontend) hold(c *carried, reset bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if reset && (!f.keeps(c.endpoint) || !f.admits(c.client)) {
		return false
	}
	if f.carried == nil {
		f.carried = map[*carried]struct{}{}
	}
	f.carried[c] = struct{}{}
	return true
}

func (f *frontend) release(c *carried) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.carried, c)
}

// connect tries endpoints until one answers, each at most once.
func (p *proxy) connect(f *frontend, v view, from netip.Addr) (*net.TCPConn, netip.AddrPort) {
	var tried []netip.AddrPort
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	for {
		ep, ok := f.pick(v, from, tried, time.Now())
		if !ok || ctx.Err() != nil {
			return nil, ep
		}
		tried = append(tried, ep)
		if p.isFrontend(ep, model.TCP) {
			continue
		}
		d := net.Dialer{Timeout: max(p.cfg.DialTimeout/3, 10*time.Millisecond), FallbackDelay: -1}
		d.SetMultipathTCP(false)
		if c, err := d.DialContext(ctx, "tcp", ep.String()); err == nil {
			return c.(*net.TCPConn), ep
		}
	}
}

// relay moves data both ways until both have ended. The end of one direction
// is passed on alone; an error resets both connections.
func relay(a, b *net.TCPConn) {
	done := make(chan error, 1)
	go func() { done <- move(a, b) }()
	if errors.Join(move(b, a), <-done) == nil {
		_ = a.SetLinger(-1)
		_ = b.SetLinger(-1)
	}
}

// move copies from src to dst in the kernel (splice), and then the end.
func move(dst, src *net.TCPConn) error {
	_, err := io.Copy(dst, src)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		_ = dst.Close()
		_ = src.Close()
	}
	return err
}
