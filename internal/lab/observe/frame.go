// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	arpRequest = 1

	nextICMPv6 = 58

	neighborSolicitation  = 135
	neighborAdvertisement = 136

	flagSolicited = 0x40

	sourceLinkAddress = 1
	targetLinkAddress = 2
)

// parse reads an Ethernet frame and returns the claim in it, if there is one.
func parse(frame []byte) (Claim, bool) {
	if len(frame) < 14 {
		return Claim{}, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherARP:
		return parseARP(frame[14:])
	case etherIPv6:
		return parseAdvertisement(frame[14:])
	}
	return Claim{}, false
}

// parseARP reads hardware type, protocol type, lengths, operation, sender MAC
// and IP, target MAC and IP. Requests are claims only when gratuitous.
func parseARP(p []byte) (Claim, bool) {
	if len(p) < 28 || binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != 0x0800 || p[4] != 6 || p[5] != 4 {
		return Claim{}, false
	}
	sender := netip.AddrFrom4([4]byte(p[14:18]))
	target := netip.AddrFrom4([4]byte(p[24:28]))
	request := binary.BigEndian.Uint16(p[6:]) == arpRequest
	if request && sender != target || sender.IsUnspecified() {
		return Claim{}, false
	}
	return Claim{Address: sender, MAC: net.HardwareAddr(p[8:14]).String(), Unasked: request || sender == target}, true
}

// parseAdvertisement reads an IPv6 packet whose payload is a neighbour
// advertisement with the target's link-layer address.
func parseAdvertisement(p []byte) (Claim, bool) {
	if len(p) < 40+24 || p[6] != nextICMPv6 || p[7] != 255 || p[40] != neighborAdvertisement {
		return Claim{}, false
	}
	body := p[40:]
	claim := Claim{Address: netip.AddrFrom16([16]byte(body[8:24])), Unasked: body[4]&flagSolicited == 0}
	for options := body[24:]; len(options) >= 8 && options[1] > 0; options = options[min(len(options), int(options[1])*8):] {
		if options[0] == targetLinkAddress {
			claim.MAC = net.HardwareAddr(options[2:8]).String()
			return claim, true
		}
	}
	return Claim{}, false
}

// request returns the frame that asks for an address, and whom it goes to.
func request(address, own netip.Addr, mac net.HardwareAddr) ([]byte, net.HardwareAddr) {
	if address.Is4() {
		to := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		frame := ethernet(to, mac, etherARP)
		frame = append(frame, 0, 1, 0x08, 0, 6, 4, 0, arpRequest)
		frame = append(frame, mac...)
		frame = append(frame, own.AsSlice()...)
		frame = append(frame, make([]byte, 6)...)
		return append(frame, address.AsSlice()...), to
	}
	return solicitation(address, own, mac)
}

func solicitation(address, own netip.Addr, mac net.HardwareAddr) ([]byte, net.HardwareAddr) {
	a := address.As16()
	group := netip.AddrFrom16([16]byte{0xff, 0x02, 11: 1, 12: 0xff, 13: a[13], 14: a[14], 15: a[15]})
	to := net.HardwareAddr{0x33, 0x33, 0xff, a[13], a[14], a[15]}

	body := []byte{neighborSolicitation, 0, 0, 0, 0, 0, 0, 0}
	body = append(body, a[:]...)
	body = append(body, sourceLinkAddress, 1)
	body = append(body, mac...)
	binary.BigEndian.PutUint16(body[2:], checksum(own, group, body))

	frame := ethernet(to, mac, etherIPv6)
	frame = append(frame, 0x60, 0, 0, 0, 0, byte(len(body)), nextICMPv6, 255)
	frame = append(frame, own.AsSlice()...)
	frame = append(frame, group.AsSlice()...)
	return append(frame, body...), to
}

func ethernet(to, from net.HardwareAddr, kind uint16) []byte {
	frame := append(append(make([]byte, 0, 128), to...), from...)
	return binary.BigEndian.AppendUint16(frame, kind)
}

// checksum is ICMPv6's, over the pseudo-header (RFC 4443 section 2.3) and a
// body of even length.
func checksum(from, to netip.Addr, body []byte) uint16 {
	data := append(append(from.AsSlice(), to.AsSlice()...), 0, 0, 0, byte(len(body)), 0, 0, 0, nextICMPv6)
	data = append(data, body...)
	var sum uint32
	for i := 0; i < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
