// SPDX-License-Identifier: Apache-2.0

package members

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// What others may cost. memberlist reads up to 20 MiB of a connection before it
// decrypts anything.
const (
	maxStreams       = 32 // connections at a time
	maxStreamsSource = 3  // of them from one address
	streamTime       = 5 * time.Second
	streamBase       = 1 << 20 // bytes a connection, and for each node as many more
	streamPerNode    = 2 << 10
	receiveBuffer    = 2 << 20
	packetBacklog    = 1024
)

// transport carries the agents' packets and memberlist's on one UDP and TCP port,
// on one of this node's addresses of each family. It takes nothing from an address
// that is no node's, and sends to a node's address as the API server lists it,
// whatever gossip says. Safe for concurrent use.
type transport struct {
	port    uint16
	direct  func(b []byte, from netip.Addr) // a packet of another agent
	packets chan *memberlist.Packet
	streams chan net.Conn

	done     chan struct{} // closed by Shutdown
	mu       sync.RWMutex
	closed   bool
	sockets  map[netip.Addr]*net.UDPConn
	local    [2]netip.Addr // by family; of sockets
	listener map[netip.Addr]net.Listener
	names    map[string]netip.AddrPort
	sources  map[netip.Addr]int // a node's address -> its open connections
	open     int
	wg       sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

func newTransport(port uint16, direct func([]byte, netip.Addr)) *transport {
	return &transport{
		port: port, direct: direct, done: make(chan struct{}),
		packets: make(chan *memberlist.Packet, packetBacklog), streams: make(chan net.Conn),
		sockets: map[netip.Addr]*net.UDPConn{}, listener: map[netip.Addr]net.Listener{},
		names: map[string]netip.AddrPort{}, sources: map[netip.Addr]int{},
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// bind serves an address of this node.
func (t *transport) bind(a netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.sockets[a] != nil {
		return nil
	}
	at := netip.AddrPortFrom(a, t.port)
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return fmt.Errorf("open UDP on %v: %w", at, err)
	}
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		udp.Close()
		return fmt.Errorf("open TCP on %v: %w", at, err)
	}
	_ = udp.SetReadBuffer(receiveBuffer) // a smaller one drops in bursts
	t.sockets[a], t.listener[a], t.local[family(a)] = udp, tcp, a
	t.wg.Go(func() { t.receive(udp) })
	t.wg.Go(func() { t.accept(tcp) })
	return nil
}

// know replaces the nodes' addresses: where each is sent to, and all that are
// heard.
func (t *transport) know(names map[string]netip.AddrPort, sources []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.sources
	t.names, t.sources = names, make(map[netip.Addr]int, len(sources))
	for _, a := range sources {
		t.sources[a] = old[a]
	}
}

func (t *transport) known(a netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.sources[a]
	return ok
}

func (t *transport) receive(c *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		source := from.Addr().Unmap().WithZone("")
		if err != nil || n < 2 || !t.known(source) {
			continue
		}
		if [2]byte(buf[:2]) == packetMagic {
			t.direct(buf[:n], source)
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case t.packets <- p:
		default: // memberlist cannot keep up
		}
	}
}

func (t *transport) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors
			continue
		}
		if s := t.admit(c); s != nil {
			t.wg.Go(func() { t.offer(s) })
		} else {
			c.Close()
		}
	}
}

// admit returns c within its limits, or nil if there are too many or its source is
// no node's.
func (t *transport) admit(c net.Conn) *stream {
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	source := addr.AddrPort().Addr().Unmap().WithZone("")
	t.mu.Lock()
	defer t.mu.Unlock()
	n, ok := t.sources[source]
	if !ok || t.closed || n >= maxStreamsSource || t.open >= maxStreams {
		return nil
	}
	t.sources[source]++
	t.open++
	s := &stream{Conn: c, end: time.Now().Add(streamTime), left: streamBase + streamPerNode*len(t.names)}
	s.leave = sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.open--
		if t.sources[source] > 0 {
			t.sources[source]--
		}
	})
	_ = c.SetDeadline(s.end)
	return s
}

// offer hands s to memberlist, which takes one at a time.
func (t *transport) offer(s *stream) {
	select {
	case t.streams <- s:
	case <-t.done:
		s.Close()
	case <-time.After(time.Until(s.end)):
		s.Close()
	}
}

// stream is a connection that ends in time and of which not more than left bytes
// are read.
type stream struct {
	net.Conn
	end   time.Time
	left  int
	leave func()
}

var errTooMuch = errors.New("the peer sends more than the gossip of all nodes takes")

// Read reads what is left.
func (s *stream) Read(b []byte) (int, error) {
	if s.left <= 0 {
		return 0, errTooMuch
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// SetDeadline shortens the time that there is.
func (s *stream) SetDeadline(at time.Time) error {
	if at.IsZero() || at.After(s.end) {
		at = s.end
	}
	return s.Conn.SetDeadline(at)
}

// SetReadDeadline is SetDeadline.
func (s *stream) SetReadDeadline(at time.Time) error { return s.SetDeadline(at) }

// SetWriteDeadline is SetDeadline.
func (s *stream) SetWriteDeadline(at time.Time) error { return s.SetDeadline(at) }

// Close makes room for another.
func (s *stream) Close() error {
	s.leave()
	return s.Conn.Close()
}

// send sends b from this node's address of the same family.
func (t *transport) send(b []byte, to netip.AddrPort) error {
	t.mu.RLock()
	c := t.sockets[t.local[family(to.Addr())]]
	t.mu.RUnlock()
	if c == nil {
		return fmt.Errorf("send to %v: this node has no address of the family", to)
	}
	_, err := c.WriteToUDPAddrPort(b, to)
	return err
}

// address returns where a node is sent to, if it may be.
func (t *transport) address(a memberlist.Address) (netip.AddrPort, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if to, ok := t.names[a.Name]; ok {
		return to, nil
	}
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return to, fmt.Errorf("send to %s: %w", a.Addr, err)
	}
	if _, ok := t.sources[to.Addr().Unmap()]; !ok || to.Port() != t.port {
		return to, fmt.Errorf("send to %v: no node of the cluster has the address", to)
	}
	return to, nil
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := t.address(a)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now(), t.send(b, to)
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. The connection comes
// from the address by which the other knows this node.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to, err := t.address(a)
	if err != nil {
		return nil, err
	}
	t.mu.RLock()
	local := t.local[family(to.Addr())]
	t.mu.RUnlock()
	d := net.Dialer{Timeout: timeout}
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	return d.DialContext(context.Background(), "tcp", to.String())
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	return net.ParseIP(ip), port, nil
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.done)
	}
	for _, c := range t.sockets {
		c.Close()
	}
	for _, l := range t.listener {
		l.Close()
	}
	t.mu.Unlock()
	t.wg.Wait()
	return nil
}
