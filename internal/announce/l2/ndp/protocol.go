// SPDX-License-Identifier: Apache-2.0

package ndp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// Protocol is address resolution by NDP as a wire.Protocol. The zero value is
// ready.
type Protocol struct{}

var _ wire.Protocol = Protocol{}

// Name is "ndp".
func (Protocol) Name() string { return "ndp" }

// EtherType is that of IPv6.
func (Protocol) EtherType() uint16 { return EtherType }

// Key is the last 32 bits of the address.
func (Protocol) Key(a netip.Addr) uint32 {
	b := a.As16()
	return binary.BigEndian.Uint32(b[12:])
}

// Filter accepts Neighbor Solicitations whose target ends in one of targets or
// whose source ends in one of sources, and Advertisements whose target ends in
// one of sources.
func (Protocol) Filter(targets, sources []wire.Range) []bpf.Instruction {
	advertisement := append(wire.Search(offsetTarget+12, sources), wire.Reject())
	out := []bpf.Instruction{
		bpf.LoadAbsolute{Off: ethernetHeader + 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: nextHeaderICMPv6<<8 | hopLimit, SkipFalse: 3},
		bpf.LoadAbsolute{Off: icmpStart, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(TypeSolicitation), SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(TypeAdvertisement), SkipTrue: 1},
		wire.Reject(),
		bpf.Jump{Skip: 1}, // advertisement
		bpf.Jump{Skip: uint32(len(advertisement))},
	}
	out = append(out, advertisement...)
	out = append(out, wire.Search(offsetTarget+12, targets)...)
	out = append(out, wire.Search(offsetSource+12, sources)...)
	return append(out, wire.Reject())
}

// Parse yields what a Solicitation or Advertisement says.
func (Protocol) Parse(frame []byte, yield func(wire.Message)) {
	p, ok := Parse(frame)
	if !ok {
		return
	}
	m := wire.Message{Address: p.Target, From: p.LinkLayer, Asker: p.Source, To: p.EthernetTo, Seal: p.Seal}
	if m.From.IsZero() {
		m.From = p.EthernetFrom
	}
	if m.From.IsGroup() || m.From.IsZero() {
		return
	}
	switch {
	case p.Type == TypeAdvertisement:
		yield(wire.Message{Kind: wire.Advertisement, Address: p.Target, From: m.From, To: p.EthernetTo, Seal: p.Seal})
	case p.Source.IsUnspecified():
		m.Kind = wire.Probe
		yield(m)
	default:
		yield(wire.Message{Kind: wire.Advertisement, Address: p.Source, From: m.From, To: p.EthernetTo, Seal: p.Seal})
		m.Kind = wire.Question
		yield(m)
	}
}

// Answer is an Advertisement: to the asker if it has an address, else to all
// nodes (RFC 4861 section 7.2.4). A probe of one of ours, and one that was sent to
// one host alone, is answered in a frame to the prober alone: an answer that all
// hear would move clients.
func (Protocol) Answer(m wire.Message, self wire.MAC, seal wire.Seal) []byte {
	p := Packet{
		EthernetTo: m.From, EthernetFrom: self,
		Source: m.Address, Dest: m.Asker,
		Type: TypeAdvertisement, Solicited: true, Override: true,
		Target: m.Address, LinkLayer: self, Seal: seal,
	}
	if m.Kind == wire.Probe {
		p.Dest, p.Solicited = allNodes, false
		if m.To.IsGroup() && m.Seal.IsZero() {
			p.EthernetTo = groupMAC(allNodes)
		}
	}
	return p.Frame()
}

// Probe is the Solicitation of duplicate address detection: its source is the
// unspecified address, and it changes no host's cache.
func (Protocol) Probe(address netip.Addr, self, to wire.MAC, seal wire.Seal) []byte {
	group := SolicitedNode(address)
	if to.IsZero() {
		to = groupMAC(group)
	}
	return Packet{
		EthernetTo: to, EthernetFrom: self,
		Source: netip.IPv6Unspecified(), Dest: group,
		Type: TypeSolicitation, Target: address, Seal: seal,
	}.Frame()
}

// Question is the Solicitation of address resolution (RFC 4861 section 7.2.2).
func (Protocol) Question(address, asker netip.Addr, self wire.MAC, seal wire.Seal) []byte {
	group := SolicitedNode(address)
	return Packet{
		EthernetTo: groupMAC(group), EthernetFrom: self,
		Source: asker, Dest: group,
		Type: TypeSolicitation, Target: address, LinkLayer: self, Seal: seal,
	}.Frame()
}

// Announce is one unsolicited Advertisement with the override flag to all nodes
// (RFC 4861 section 7.2.6).
func (Protocol) Announce(address netip.Addr, self wire.MAC, seal wire.Seal) [][]byte {
	return [][]byte{Packet{
		EthernetTo: groupMAC(allNodes), EthernetFrom: self,
		Source: address, Dest: allNodes,
		Type: TypeAdvertisement, Override: true,
		Target: address, LinkLayer: self, Seal: seal,
	}.Frame()}
}
