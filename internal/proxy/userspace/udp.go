// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

const udp = "UDP" // the metrics' label

// maxDatagram is the most that UDP can carry.
const maxDatagram = 1 << 16

// flowKey tells UDP flows apart: who sends to what.
type flowKey struct {
	client, at netip.AddrPort
}

// flow is one client's datagrams to one frontend, by a socket of its own.
type flow struct {
	key      flowKey
	endpoint netip.AddrPort
	conn     *net.UDPConn
	last     atomic.Int64 // when the client sent last, Unix nanoseconds
}

// end makes the flow's goroutine end it.
func (f *flow) end() { _ = f.conn.Close() }

var buffers = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// receive reads the datagrams that the kernel gives to one view's socket.
func (p *proxy) receive(u *net.UDPConn, v view, r *replier) {
	buf, oob := make([]byte, maxDatagram), make([]byte, 256)
	for {
		n, oobn, _, client, err := u.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !p.pause() {
				return
			}
			continue
		}
		at, err := originalDestination(oob[:oobn])
		if err != nil {
			continue // it was not sent to a Service
		}
		p.datagram(buf[:n], flowKey{netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), at}, v, r)
	}
}

// originalDestination is what a datagram was sent to.
func originalDestination(oob []byte) (netip.AddrPort, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := range messages {
		to, err := unix.ParseOrigDstAddr(&messages[i])
		if err != nil {
			continue
		}
		switch to := to.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)), nil
		case *unix.SockaddrInet6:
			a := netip.AddrFrom16(to.Addr)
			if a.IsLinkLocalUnicast() {
				a = a.WithZone(strconv.Itoa(int(to.ZoneId)))
			}
			return netip.AddrPortFrom(a, uint16(to.Port)), nil
		}
	}
	return netip.AddrPort{}, errors.New("datagram without its destination")
}

// datagram passes one on, by the flow that it belongs to or a new one.
func (p *proxy) datagram(data []byte, key flowKey, v view, r *replier) {
	f := p.find(key.at, model.UDP)
	if f == nil {
		p.metrics.refused.WithLabelValues(udp, reasonNoService).Inc()
		return
	}
	fl := f.flow(key)
	if fl == nil {
		if fl = p.newFlow(f, key, v, r); fl == nil {
			return
		}
	}
	fl.last.Store(time.Now().UnixNano())
	if _, err := fl.conn.Write(data); errors.Is(err, unix.ECONNREFUSED) {
		fl.end() // nobody listens at the endpoint: the next datagram tries another
	}
}

func (f *frontend) flow(key flowKey) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.flows[key]
}

func (p *proxy) newFlow(f *frontend, key flowKey, v view, r *replier) *flow {
	refused := func(reason string) *flow {
		p.metrics.refused.WithLabelValues(udp, reason).Inc()
		return nil
	}
	if !p.budget.take(costUDP, f.name(), time.Now()) {
		return refused(reasonLimit)
	}
	ep, ok := f.pick(v, key.client.Addr(), nil, time.Now())
	if !ok || p.isFrontend(ep, model.UDP) {
		p.budget.give(costUDP)
		return refused(reasonNoEndpoint)
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(ep))
	if err != nil {
		p.budget.give(costUDP)
		return refused(reasonNoEndpoint)
	}
	fl := &flow{key: key, endpoint: ep, conn: conn}
	fl.last.Store(time.Now().UnixNano())
	f.mu.Lock()
	// The endpoint may have gone since it was picked.
	stays := f.keeps(ep)
	if stays && f.flows == nil {
		f.flows = map[flowKey]*flow{}
	}
	if stays {
		f.flows[key] = fl
	}
	f.mu.Unlock()
	if !stays || !p.keep(conn) {
		f.drop(fl)
		_ = conn.Close()
		p.budget.give(costUDP)
		return refused(reasonNoEndpoint)
	}
	p.metrics.accepted.WithLabelValues(udp).Inc()
	p.wait.Go(func() { p.answer(f, fl, r) })
	return fl
}

func (f *frontend) drop(fl *flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flows[fl.key] == fl {
		delete(f.flows, fl.key)
	}
}

// answer brings the endpoint's datagrams to the client, until the flow is idle
// or is ended.
func (p *proxy) answer(f *frontend, fl *flow, r *replier) {
	open := p.metrics.open.WithLabelValues(udp)
	open.Inc()
	defer open.Dec()
	defer p.budget.give(costUDP)
	defer p.forget(fl.conn)
	defer fl.conn.Close()
	defer f.drop(fl)
	raw, err := fl.conn.SyscallConn()
	if err != nil {
		return
	}
	for {
		idle := time.Unix(0, fl.last.Load()).Add(p.cfg.UDPTimeout)
		if err := fl.conn.SetReadDeadline(idle); err != nil {
			return
		}
		err := p.answers(raw, fl, r)
		switch {
		case err == nil:
			fl.last.Store(time.Now().UnixNano())
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(time.Unix(0, fl.last.Load()).Add(p.cfg.UDPTimeout)):
		default:
			return
		}
	}
}

// answers waits for datagrams and passes on those that are there. A buffer is
// in use only while there are some.
func (p *proxy) answers(raw syscall.RawConn, fl *flow, r *replier) error {
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		for got := false; ; got = true {
			n, err := unix.Read(int(fd), (*buf)[udpHeader:])
			switch {
			case err == nil:
				r.send((*buf)[:udpHeader+n], fl.key.at, fl.key.client)
			case errors.Is(err, unix.EAGAIN):
				return got
			default:
				failed = err
				return true
			}
		}
	})
	return errors.Join(err, failed)
}

// udpHeader is the size of a UDP header (RFC 768).
const udpHeader = 8

// replier sends datagrams from any address and port. A bound socket could not:
// it would take the port away from, or not get it because of, programs of the
// node that listen on all addresses.
type replier struct {
	fd     int
	family model.Family
}

func newReplier(f model.Family) (*replier, error) {
	r := &replier{family: f}
	var err error
	if r.fd, err = unix.Socket(netlinkFamily(f), unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP); err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	nothing := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}
	err = unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &nothing)
	if err == nil && f == model.IPv4 {
		// Without DF, routers fragment: the kernel takes no note of a path's MTU for a
		// source that is not its own.
		err = errors.Join(
			unix.SetsockoptInt(r.fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1),
			unix.SetsockoptInt(r.fd, unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT),
		)
	} else if err == nil {
		// Routers do not fragment. A raw socket that is not connected takes note of a
		// path's MTU only if it is told of errors; they wait in its queue, which nobody
		// reads and which is kept short.
		err = errors.Join(
			unix.SetsockoptInt(r.fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1),
			unix.SetsockoptInt(r.fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1),
			unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
		)
	}
	if err != nil {
		_ = unix.Close(r.fd)
		return nil, fmt.Errorf("prepare raw socket: %w", err)
	}
	return r, nil
}

// close must come after the last send.
func (r *replier) close() error { return unix.Close(r.fd) }

// send fills in the header in front of a datagram and sends it. What the kernel
// has no room for is lost, as UDP may be.
func (r *replier) send(b []byte, from, to netip.AddrPort) {
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], 0)
	binary.BigEndian.PutUint16(b[6:], checksum(b, from.Addr(), to.Addr()))
	if r.family == model.IPv4 {
		info := unix.Inet4Pktinfo{Spec_dst: from.Addr().As4()}
		_ = unix.Sendmsg(r.fd, b, unix.PktInfo4(&info), &unix.SockaddrInet4{Addr: to.Addr().As4()}, 0)
		return
	}
	info := unix.Inet6Pktinfo{Addr: from.Addr().As16()}
	dst := &unix.SockaddrInet6{Addr: to.Addr().As16()}
	if zone := to.Addr().Zone(); zone != "" {
		dst.ZoneId = zoneID(zone)
		info.Ifindex = dst.ZoneId
	}
	control := pktInfo6(&info)
	// The first attempt after an ICMP error about another datagram reports that one.
	for range 3 {
		if err := unix.Sendmsg(r.fd, b, control, dst, 0); err == nil || errors.Is(err, unix.EAGAIN) {
			return
		}
	}
}

// pktInfo6 is IPV6_PKTINFO as a control message (RFC 3542 section 6).
func pktInfo6(info *unix.Inet6Pktinfo) []byte {
	b := make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	h.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	data := b[unix.CmsgLen(0):]
	copy(data, info.Addr[:])
	binary.NativeEndian.PutUint32(data[16:], info.Ifindex)
	return b
}

// zoneID is a zone's interface index; zones are names or indices.
func zoneID(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	return 0
}

// checksum is that of RFC 768 and RFC 8200 section 8.1, never 0.
func checksum(b []byte, from, to netip.Addr) uint16 {
	var sum uint64
	add := func(b []byte) {
		for ; len(b) > 1; b = b[2:] {
			sum += uint64(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			sum += uint64(b[0]) << 8
		}
	}
	add(from.AsSlice())
	add(to.AsSlice())
	sum += uint64(unix.IPPROTO_UDP) + uint64(len(b))
	add(b)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff
	}
	return ^uint16(sum)
}
