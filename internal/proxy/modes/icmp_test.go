// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// icmpErrors are the errors that there are, of each family: type, code, and the four
// bytes in front of the quoted packet, which have the MTU.
var icmpErrors = map[model.Family][]struct {
	name      string
	typ, code byte
	rest      uint32
}{
	model.IPv4: {
		{"net unreachable", 3, 0, 0}, {"host unreachable", 3, 1, 0}, {"port unreachable", 3, 3, 0},
		{"fragmentation needed", 3, 4, 1300}, {"time exceeded", 11, 0, 0}, {"parameter problem", 12, 0, 0},
	},
	model.IPv6: {
		{"no route", 1, 0, 0}, {"address unreachable", 1, 3, 0}, {"port unreachable", 1, 4, 0},
		{"packet too big", 2, 0, 1300}, {"time exceeded", 3, 0, 0}, {"parameter problem", 4, 0, 0},
	},
}

// TestErrorsAboutMovedFlows: every kind of ICMP error about a TCP connection or a UDP
// flow gets to the node that knows it, after its address has moved, and from there to
// the Pod, which is told of its own packet. A UDP answer that is too large for the
// client's path is smaller the next time, whether its address has moved or not; also
// in mode userspace, where the node sends it.
func TestErrorsAboutMovedFlows(t *testing.T) {
	nstest.Require(t, "ip", "nft", "iptables-restore", "ip6tables-restore")
	kinds := Kinds(Configs{})
	for _, mode := range here(t, kinds) {
		if nstest.InVM() && mode != IPVS {
			continue // tried outside
		}
		t.Run(string(mode), func(t *testing.T) {
			l := newLAN(t)
			l.program(t, kinds[mode], model.TCP, model.UDP)
			for _, f := range lanFamilies {
				t.Run(f.name, func(t *testing.T) {
					l.announce(t, f, f.node)
					var pod net.PacketConn
					l.pod.Must(t, func() (err error) {
						pod, err = net.ListenPacket("udp", netip.AddrPortFrom(f.pod, 8080).String())
						return err
					})
					defer pod.Close()
					here, moved, before := l.open(t, f, "udp", pod), l.open(t, f, "udp", pod), l.open(t, f, "tcp", nil)
					here.answersArrive(t, "its address is where it was")
					l.second.Must(t, func() error {
						s, err := conntrack.OpenHandover()
						if err != nil {
							return err
						}
						return errors.Join(s.Pass(f.vip, f.node), s.Close())
					})
					l.announce(t, f, f.second)
					moved.answersArrive(t, "its address has moved")
					if mode != Userspace { // there the Pod has sent the client nothing
						l.errorsArrive(t, mode, f, before)
						l.errorsArrive(t, mode, f, moved)
					}
				})
			}
		})
	}
}

func (l *lan) announce(t *testing.T, f lanFamily, by netip.Addr) {
	t.Helper()
	l.router.Route(t, netip.PrefixFrom(f.vip, f.vip.BitLen()), by, "br0")
}

// flow is one of a client's, to the address's port 80.
type flow struct {
	network string
	f       lanFamily
	conn    net.Conn // the client's
	pod     net.PacketConn
	from    net.Addr // whom the Pod sees
}

// open begins a flow; pod is the Pod's socket of one by UDP.
func (l *lan) open(t *testing.T, f lanFamily, network string, pod net.PacketConn) *flow {
	t.Helper()
	client := l.newClient(t, f)
	o := &flow{network: network, f: f, pod: pod}
	var local net.Addr = &net.TCPAddr{IP: client.AsSlice()}
	if network == "udp" {
		local = &net.UDPAddr{IP: client.AsSlice()}
	}
	l.client.Must(t, func() (err error) {
		o.conn, err = (&net.Dialer{Timeout: patience, LocalAddr: local}).Dial(network, netip.AddrPortFrom(f.vip, 80).String())
		return err
	})
	t.Cleanup(func() { _ = o.conn.Close() })
	if network == "udp" {
		b := make([]byte, 16)
		_ = o.pod.SetReadDeadline(time.Now().Add(patience))
		_, err := o.conn.Write([]byte("?"))
		if err == nil {
			_, o.from, err = o.pod.ReadFrom(b)
		}
		if err != nil {
			t.Fatalf("%s: the Pod got no datagram: %v", f.name, err)
		}
	}
	return o
}

// answersArrive has the Pod answer by more than the client's path takes, until an
// answer arrives: the first are lost, and tell how large the next may be.
func (o *flow) answersArrive(t *testing.T, when string) {
	t.Helper()
	const size = 1400 // 1300 < size < 1500
	answer, b := make([]byte, size), make([]byte, 2*size)
	testkit.Eventually(t, patience, "large answers arrive, while "+when, func() error {
		if _, err := o.pod.WriteTo(answer, o.from); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return err
		}
		_ = o.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := o.conn.Read(b)
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes of %d", n, size)
		}
		return err
	})
}

// errorsArrive sends every kind of error about what the client has got, and expects
// each at the Pod.
func (l *lan) errorsArrive(t *testing.T, mode Mode, f lanFamily, o *flow) {
	t.Helper()
	fam := model.FamilyOf(f.vip)
	network, proto := "ip4:icmp", byte(model.TCP)
	if fam == model.IPv6 {
		network = "ip6:ipv6-icmp"
	}
	if o.network == "udp" {
		proto = byte(model.UDP)
	}
	client := netip.MustParseAddrPort(o.conn.LocalAddr().String())
	var at, from net.PacketConn
	l.pod.Must(t, func() (err error) { at, err = net.ListenPacket(network, f.pod.String()); return err })
	defer at.Close()
	l.router.Must(t, func() (err error) { from, err = net.ListenPacket(network, f.gateway.String()); return err })
	defer from.Close()
	for _, e := range icmpErrors[fam] {
		if mode == IPVS && fam == model.IPv4 && e.typ == 12 {
			continue // IPVS translates unreachable, source quench and time exceeded
		}
		sent := icmpError(e.typ, e.code, e.rest, quote(netip.AddrPortFrom(f.vip, 80), client, proto))
		// The Pod is told of what it has sent itself; to whom may have been masqueraded.
		want := quote(netip.AddrPortFrom(f.pod, 8080), client, proto)
		source, ports := 12, 20
		if fam == model.IPv6 {
			source, ports = 8, 40
		}
		testkit.Eventually(t, patience, fmt.Sprintf("%s about %s arrives", e.name, o.network), func() error {
			if _, err := from.WriteTo(sent, &net.IPAddr{IP: f.vip.AsSlice()}); err != nil {
				return err
			}
			b := make([]byte, 1500)
			for _ = at.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); ; {
				n, _, err := at.ReadFrom(b)
				if err != nil {
					return err
				}
				if n < len(sent) || b[0] != e.typ || b[1] != e.code {
					continue // neighbour discovery
				}
				got := b[8:n]
				size := len(f.pod.AsSlice())
				if !bytes.Equal(got[source:source+size], want[source:source+size]) || !bytes.Equal(got[ports:ports+2], want[ports:ports+2]) {
					return fmt.Errorf("about a packet from % x, port % x", got[source:source+size], got[ports:ports+2])
				}
				return nil
			}
		})
	}
}

// quote is the beginning of a packet: its IP header and eight bytes more.
func quote(from, to netip.AddrPort, proto byte) []byte {
	var b []byte
	if from.Addr().Is4() {
		b = append([]byte{0x45, 0, 0x05, 0x78, 0, 1, 0x40, 0, 64, proto, 0, 0}, append(from.Addr().AsSlice(), to.Addr().AsSlice()...)...)
		binary.BigEndian.PutUint16(b[10:], onesComplement(b))
	} else {
		b = append([]byte{0x60, 0, 0, 0, 0x05, 0x50, proto, 64}, append(from.Addr().AsSlice(), to.Addr().AsSlice()...)...)
	}
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	return append(b, 0x05, 0x58, 0, 0) // UDP's length and checksum, or TCP's sequence number
}

// icmpError is an ICMP message; the kernel fills in the checksum of ICMPv6.
func icmpError(typ, code byte, rest uint32, quoted []byte) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{typ, code, 0, 0}, rest), quoted...)
	binary.BigEndian.PutUint16(b[2:], onesComplement(b))
	return b
}

// onesComplement is the Internet checksum (RFC 1071) of an even number of bytes.
func onesComplement(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
