// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/drain"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// proxy carries connections and flows. It has a socket for each family, view
// and protocol, however many Services there are.
type proxy struct {
	cfg     Config
	budget  *budget
	metrics *Metrics

	// frontends is what the sockets lead to. A new state of a frontend is set on
	// the same object.
	mu        sync.RWMutex
	frontends map[model.Key]*frontend
	// gone are those that went a moment ago; see linger.
	gone map[model.Key]*frontend
	// groups are what the frontends remember of clients, for affinity.
	groups map[model.Key]*clients

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	closers []io.Closer
	replies map[model.Family]*replier
	at      map[model.Family]map[view]ports

	carried atomic.Int64 // TCP connections

	connsMu sync.Mutex
	conns   map[io.Closer]struct{} // what close ends, besides the sockets
}

func newProxy(cfg Config, b *budget, m *Metrics) *proxy {
	ctx, cancel := context.WithCancel(context.Background())
	return &proxy{
		cfg: cfg, budget: b, metrics: m, frontends: map[model.Key]*frontend{}, gone: map[model.Key]*frontend{}, groups: map[model.Key]*clients{}, ctx: ctx, cancel: cancel,
		replies: map[model.Family]*replier{}, at: map[model.Family]map[view]ports{}, conns: map[io.Closer]struct{}{},
	}
}

func loopback(f model.Family) netip.Addr {
	if f == model.IPv4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// listen opens the sockets, once.
func (p *proxy) listen(families []model.Family) error {
	for _, f := range families {
		if p.at[f] != nil {
			continue
		}
		at, err := p.listenFamily(f)
		if err != nil {
			return fmt.Errorf("listen for %s: %w", f, err)
		}
		p.at[f] = at
	}
	return nil
}

func (p *proxy) listenFamily(f model.Family) (at map[view]ports, err error) {
	var opened []io.Closer
	defer func() {
		if err != nil {
			for _, c := range opened {
				_ = c.Close()
			}
		}
	}()
	replies, err := newReplier(f)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = replies.close()
		}
	}()
	at = map[view]ports{}
	var run []func()
	cfg := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return transparent(c, f) }}
	cfg.SetMultipathTCP(false)
	suffix := map[model.Family]string{model.IPv4: "4", model.IPv6: "6"}[f]
	address := netip.AddrPortFrom(loopback(f), 0).String()
	for _, v := range []view{viewInside, viewOutside} {
		l, err := cfg.Listen(p.ctx, "tcp"+suffix, address)
		if err != nil {
			return nil, err
		}
		opened = append(opened, l)
		u, err := cfg.ListenPacket(p.ctx, "udp"+suffix, address)
		if err != nil {
			return nil, err
		}
		opened = append(opened, u)
		tcp, udp := l.(*net.TCPListener), u.(*net.UDPConn)
		_ = udp.SetReadBuffer(4 << 20) // as much as net.core.rmem_max allows
		at[v] = ports{tcp: tcp.Addr().(*net.TCPAddr).AddrPort().Port(), udp: udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
		run = append(run, func() { p.accept(tcp, v) }, func() { p.receive(udp, v, replies) })
	}
	p.closers = append(p.closers, opened...)
	p.replies[f] = replies
	for _, f := range run {
		p.wait.Go(f)
	}
	return at, nil
}

// transparent lets a socket have packets, and send packets, whose address is
// not this node's, and tells what a datagram's destination was.
func transparent(c syscall.RawConn, f model.Family) error {
	var errs []error
	err := c.Control(func(fd uintptr) {
		set := func(level, option int) { errs = append(errs, unix.SetsockoptInt(int(fd), level, option, 1)) }
		if f == model.IPv4 {
			set(unix.SOL_IP, unix.IP_TRANSPARENT)
			set(unix.SOL_IP, unix.IP_RECVORIGDSTADDR)
		} else {
			set(unix.SOL_IPV6, unix.IPV6_TRANSPARENT)
			set(unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR)
		}
	})
	if err := errors.Join(append(errs, err)...); errors.Is(err, unix.ENOPROTOOPT) {
		return &backend.UnsupportedError{Feature: "transparent sockets", MinKernel: "2.6.37", Err: err}
	} else if err != nil {
		return fmt.Errorf("make socket transparent: %w", err)
	}
	return nil
}

// find gives who answers for an address and port.
func (p *proxy) find(at netip.AddrPort, proto model.Protocol) *frontend {
	p.mu.RLock()
	defer p.mu.RUnlock()
	addr := at.Addr().Unmap().WithZone("")
	if f := p.frontends[model.Key{Addr: addr, Port: at.Port(), Protocol: proto}]; f != nil {
		return f
	}
	return p.frontends[model.Key{Addr: model.FamilyOf(addr).Unspecified(), Port: at.Port(), Protocol: proto}]
}

// isFrontend says that an endpoint is an address of Services itself, or a
// NodePort of this node. The proxy would dial itself for ever.
func (p *proxy) isFrontend(ep netip.AddrPort, proto model.Protocol) bool {
	p.mu.RLock()
	address := p.frontends[model.Key{Addr: ep.Addr(), Port: ep.Port(), Protocol: proto}] != nil
	nodePort := p.frontends[model.Key{Addr: model.FamilyOf(ep.Addr()).Unspecified(), Port: ep.Port(), Protocol: proto}] != nil
	p.mu.RUnlock()
	return address || nodePort && isLocal(ep.Addr())
}

// isLocal says whether an address is this node's: a socket can be bound to it.
func isLocal(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// put takes over the frontends of some Services.
func (p *proxy) put(services []*model.Service) {
	var over []ending
	p.mu.Lock()
	for _, svc := range services {
		for i := range svc.Frontends {
			m := &svc.Frontends[i]
			if !proxied(m.Protocol) {
				continue
			}
			f := p.frontends[m.Key]
			if f == nil {
				if f = p.gone[m.Key]; f == nil {
					f = &frontend{}
				}
				delete(p.gone, m.Key)
				p.frontends[m.Key] = f
			}
			p.join(f, m.AffinityGroup())
			over = append(over, f.set(svc.Name, m, p.cfg.ResetTCP)...)
		}
	}
	p.mu.Unlock()
	end(over)
}

// linger is how long flows stay after their frontend has gone altogether, as in other
// modes (package conntrack): a Service that is made again, under whatever name, has it
// back by then, and so its clients their endpoints.
const linger = time.Second

// drop ends the frontends that gone names, and after a moment their flows, with TCP
// connections if reset says so.
func (p *proxy) drop(gone func(model.Key) bool, reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	went := map[model.Key]*frontend{}
	for key, f := range p.frontends {
		if gone(key) {
			f.retire()
			p.leave(f)
			delete(p.frontends, key)
			p.gone[key], went[key] = f, f
		}
	}
	if len(went) == 0 {
		return
	}
	time.AfterFunc(linger, func() { p.bury(went, reset) })
}

// bury ends the flows of frontends that went and have not come back since.
func (p *proxy) bury(went map[model.Key]*frontend, reset bool) {
	var over []ending
	p.mu.Lock()
	for key, f := range went {
		if p.gone[key] == f {
			over = append(over, f.set(f.name(), nil, reset)...)
			delete(p.gone, key)
		}
	}
	p.mu.Unlock()
	end(over)
}

// join has a frontend share what a group remembers of clients; mu is held.
func (p *proxy) join(f *frontend, group model.Key) {
	if f.clients != nil && f.clients.group == group {
		return
	}
	p.leave(f)
	c := p.groups[group]
	if c == nil {
		c = &clients{group: group}
		p.groups[group] = c
	}
	c.users++
	f.mu.Lock()
	f.clients = c
	f.mu.Unlock()
}

// leave ends that; the last one takes the memory along. mu is held.
func (p *proxy) leave(f *frontend) {
	if c := f.clients; c != nil {
		if c.users--; c.users == 0 {
			delete(p.groups, c.group)
		}
		f.mu.Lock()
		f.clients = nil
		f.mu.Unlock()
	}
}

// dropAll ends all frontends with their UDP flows, at once.
func (p *proxy) dropAll() {
	p.drop(func(model.Key) bool { return true }, false)
	p.mu.RLock()
	gone := maps.Clone(p.gone)
	p.mu.RUnlock()
	p.bury(gone, false)
}

func end(over []ending) {
	for _, e := range over {
		e.end()
	}
}

// keep has close end c; it returns false if that has begun.
func (p *proxy) keep(c io.Closer) bool {
	p.connsMu.Lock()
	defer p.connsMu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *proxy) forget(c io.Closer) {
	p.connsMu.Lock()
	defer p.connsMu.Unlock()
	delete(p.conns, c)
}

// close takes no new connections, gives those that are open a moment to end,
// resets the others and waits for all of that. It may be called again.
func (p *proxy) close() error {
	p.quiesce()
	p.connsMu.Lock()
	p.cancel()
	conns := p.conns
	p.conns = map[io.Closer]struct{}{}
	p.connsMu.Unlock()
	var errs []error
	for _, c := range p.closers {
		errs = append(errs, c.Close())
	}
	for c := range conns {
		_ = c.Close()
	}
	p.wait.Wait()
	for _, r := range p.replies {
		errs = append(errs, r.close()) // nobody sends any more
	}
	p.closers = nil
	clear(p.replies)
	return errors.Join(errs...)
}

// quiesce has the kernel drop the first packets of connections, which their
// clients repeat, and waits until those that are open have ended, but not long.
func (p *proxy) quiesce() {
	var listeners []*net.TCPListener
	for _, c := range p.closers {
		if l, ok := c.(*net.TCPListener); ok {
			_ = drain.Refuse(l)
			listeners = append(listeners, l)
		}
	}
	waiting := func(l *net.TCPListener) bool {
		n, err := drain.Waiting(l)
		return err == nil && n > 0
	}
	if len(p.closers) == 0 {
		return
	}
	const settle = 20 * time.Millisecond // for what was just accepted by the kernel
	for deadline := time.Now().Add(p.cfg.Grace); ; {
		time.Sleep(settle)
		// In this order: who waits is carried next.
		idle := !slices.ContainsFunc(listeners, waiting) && p.carried.Load() == 0
		if idle || time.Now().After(deadline) {
			return
		}
	}
}

// pause waits a little after an error that may pass, and says whether to go on.
func (p *proxy) pause() bool {
	select {
	case <-p.ctx.Done():
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}
