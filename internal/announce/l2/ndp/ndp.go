// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// ICMPv6 types (RFC 4861 section 4).
const (
	TypeSolicitation  uint8 = 135
	TypeAdvertisement uint8 = 136
)

// EtherType of IPv6.
const EtherType = 0x86dd

// Flags of a Neighbor Advertisement (RFC 4861 section 4.4).
const (
	flagSolicited = 0x40
	flagOverride  = 0x20
)

const (
	ethernetHeader = 14
	ipv6Header     = 40
	icmpStart      = ethernetHeader + ipv6Header
	messageLength  = 24 // ICMPv6 header, flags or reserved, target
	optionLength   = 8
	minFrame       = icmpStart + messageLength

	nextHeaderICMPv6 = 58
	hopLimit         = 255

	optionSourceLinkLayer = 1
	optionTargetLinkLayer = 2
	// optionExperiment is for experiments (RFC 4727 section 5.1.3); hosts ignore
	// options that they do not know (RFC 4861 section 4.6).
	optionExperiment = 253
	sealOption       = 24 // type, length, 4 zero bytes, seal

	offsetSource = ethernetHeader + 8
	offsetDest   = ethernetHeader + 24
	offsetTarget = icmpStart + 8
)

var allNodes = netip.MustParseAddr("ff02::1")

// Packet is a Neighbor Solicitation or Advertisement with the addresses of the
// frame that carries it.
type Packet struct {
	EthernetTo, EthernetFrom wire.MAC
	Source, Dest             netip.Addr
	Type                     uint8
	// Solicited and Override are the flags of an Advertisement.
	Solicited, Override bool
	Target              netip.Addr
	// LinkLayer is the source (Solicitation) or target (Advertisement)
	// link-layer address option; zero for none.
	LinkLayer wire.MAC
	// Seal is an option of its own; zero for none.
	Seal wire.Seal
}

// Frame returns the Ethernet frame. All addresses must be IPv6.
func (p Packet) Frame() []byte {
	length := messageLength
	if !p.LinkLayer.IsZero() {
		length += optionLength
	}
	if !p.Seal.IsZero() {
		length += sealOption
	}
	b := make([]byte, icmpStart+length)
	copy(b[0:], p.EthernetTo[:])
	copy(b[6:], p.EthernetFrom[:])
	binary.BigEndian.PutUint16(b[12:], EtherType)
	b[14] = 6 << 4
	binary.BigEndian.PutUint16(b[18:], uint16(length))
	b[20], b[21] = nextHeaderICMPv6, hopLimit
	put(b[offsetSource:], p.Source)
	put(b[offsetDest:], p.Dest)

	icmp := b[icmpStart:]
	icmp[0] = p.Type
	if p.Solicited {
		icmp[4] |= flagSolicited
	}
	if p.Override {
		icmp[4] |= flagOverride
	}
	put(icmp[8:], p.Target)
	if !p.LinkLayer.IsZero() {
		icmp[24], icmp[25] = optionTargetLinkLayer, optionLength/8
		if p.Type == TypeSolicitation {
			icmp[24] = optionSourceLinkLayer
		}
		copy(icmp[26:], p.LinkLayer[:])
	}
	if !p.Seal.IsZero() {
		o := icmp[length-sealOption:]
		o[0], o[1] = optionExperiment, sealOption/8
		copy(o[6:], p.Seal[:])
	}
	binary.BigEndian.PutUint16(icmp[2:], ^sum(b))
	return b
}

func put(b []byte, a netip.Addr) {
	v := a.As16()
	copy(b, v[:])
}

// sum is the ones' complement sum over the pseudo-header (RFC 8200 section 8.1)
// and the ICMPv6 message of frame. It is 0xffff if the checksum is right.
func sum(frame []byte) uint16 {
	icmp := frame[icmpStart:]
	total := uint32(len(icmp)) + nextHeaderICMPv6
	for _, part := range [][]byte{frame[offsetSource:icmpStart], icmp} {
		for i := 0; i+1 < len(part); i += 2 {
			total += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			total += uint32(part[len(part)-1]) << 8
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// Parse reads an Ethernet frame. ok is false for anything but a Neighbor
// Solicitation or Advertisement that passes the checks of RFC 4861 sections
// 7.1.1 and 7.1.2. Extension headers are not looked through: fragments are
// forbidden (RFC 6980) and no others are in use here.
func Parse(frame []byte) (p Packet, ok bool) {
	if len(frame) < minFrame || binary.BigEndian.Uint16(frame[12:]) != EtherType ||
		frame[14]>>4 != 6 || frame[20] != nextHeaderICMPv6 || frame[21] != hopLimit {
		return Packet{}, false
	}
	length := int(binary.BigEndian.Uint16(frame[18:]))
	if length < messageLength || len(frame) < icmpStart+length {
		return Packet{}, false
	}
	frame = frame[:icmpStart+length]
	icmp := frame[icmpStart:]
	if icmp[0] != TypeSolicitation && icmp[0] != TypeAdvertisement || icmp[1] != 0 || sum(frame) != 0xffff {
		return Packet{}, false
	}
	copy(p.EthernetTo[:], frame[0:])
	copy(p.EthernetFrom[:], frame[6:])
	p.Source = netip.AddrFrom16([16]byte(frame[offsetSource:]))
	p.Dest = netip.AddrFrom16([16]byte(frame[offsetDest:]))
	p.Type = icmp[0]
	p.Target = netip.AddrFrom16([16]byte(icmp[8:]))
	if p.Type == TypeAdvertisement {
		p.Solicited, p.Override = icmp[4]&flagSolicited != 0, icmp[4]&flagOverride != 0
	}
	if !p.parseOptions(icmp[24:]) || !p.valid() {
		return Packet{}, false
	}
	return p, true
}

// parseOptions keeps the link-layer address that belongs to the type, and what
// is in the place of a seal.
func (p *Packet) parseOptions(b []byte) bool {
	want := byte(optionTargetLinkLayer)
	if p.Type == TypeSolicitation {
		want = optionSourceLinkLayer
	}
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || len(b) < int(b[1])*8 {
			return false
		}
		if b[0] == want && b[1] == 1 {
			copy(p.LinkLayer[:], b[2:8])
		}
		if b[0] == optionExperiment && int(b[1]) == sealOption/8 {
			copy(p.Seal[:], b[6:])
		}
		b = b[int(b[1])*8:]
	}
	return true
}

func (p *Packet) valid() bool {
	switch {
	case p.Target.IsMulticast(), p.Target.IsUnspecified(), p.Target.Is4In6(), p.Source.IsMulticast():
		return false
	case p.Type == TypeAdvertisement:
		return !p.Source.IsUnspecified() && !(p.Dest.IsMulticast() && p.Solicited)
	case p.Source.IsUnspecified():
		return p.Dest == SolicitedNode(p.Target) && p.LinkLayer.IsZero()
	}
	return true
}

// SolicitedNode is the multicast group in which the host that has a listens
// for questions (RFC 4291 section 2.7.1).
func SolicitedNode(a netip.Addr) netip.Addr {
	v := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: v[13], 14: v[14], 15: v[15]})
}

// groupMAC is the Ethernet address of an IPv6 multicast group (RFC 2464
// section 7).
func groupMAC(group netip.Addr) wire.MAC {
	v := group.As16()
	return wire.MAC{0x33, 0x33, v[12], v[13], v[14], v[15]}
}
