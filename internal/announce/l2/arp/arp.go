// SPDX-License-Identifier: Apache-2.0

package arp

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// Operations (RFC 826).
const (
	OpRequest uint16 = 1
	OpReply   uint16 = 2
)

// EtherType of ARP.
const EtherType = 0x0806

const (
	ethernetHeader = 14
	frameLength    = ethernetHeader + 28

	hardwareEthernet = 1
	protocolIPv4     = 0x0800

	offsetSPA = ethernetHeader + 14
	offsetTPA = ethernetHeader + 24
)

// Packet is an ARP packet for IPv4 over Ethernet with the two addresses of the
// frame that carries it.
type Packet struct {
	EthernetTo, EthernetFrom wire.MAC
	Op                       uint16
	SenderMAC, TargetMAC     wire.MAC
	SenderAddr, TargetAddr   netip.Addr
	// Seal follows the packet, in the place of padding; zero for none.
	Seal wire.Seal
}

// Frame returns the Ethernet frame. It is shorter than Ethernet's minimum; the
// driver pads it. SenderAddr and TargetAddr must be IPv4 or zero (0.0.0.0).
func (p Packet) Frame() []byte {
	b := make([]byte, frameLength, frameLength+wire.SealLength)
	if !p.Seal.IsZero() {
		b = append(b, p.Seal[:]...)
	}
	copy(b[0:], p.EthernetTo[:])
	copy(b[6:], p.EthernetFrom[:])
	binary.BigEndian.PutUint16(b[12:], EtherType)
	binary.BigEndian.PutUint16(b[14:], hardwareEthernet)
	binary.BigEndian.PutUint16(b[16:], protocolIPv4)
	b[18], b[19] = 6, 4
	binary.BigEndian.PutUint16(b[20:], p.Op)
	copy(b[22:], p.SenderMAC[:])
	putAddr(b[offsetSPA:], p.SenderAddr)
	copy(b[32:], p.TargetMAC[:])
	putAddr(b[offsetTPA:], p.TargetAddr)
	return b
}

func putAddr(b []byte, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		copy(b, v[:])
	}
}

// Parse reads an Ethernet frame. ok is false if it is not an ARP packet for
// IPv4 over Ethernet. What follows the packet is padding, which may be a seal.
func Parse(frame []byte) (p Packet, ok bool) {
	if len(frame) < frameLength ||
		binary.BigEndian.Uint16(frame[12:]) != EtherType ||
		binary.BigEndian.Uint16(frame[14:]) != hardwareEthernet ||
		binary.BigEndian.Uint16(frame[16:]) != protocolIPv4 ||
		frame[18] != 6 || frame[19] != 4 {
		return Packet{}, false
	}
	p.Op = binary.BigEndian.Uint16(frame[20:])
	copy(p.EthernetTo[:], frame[0:])
	copy(p.EthernetFrom[:], frame[6:])
	copy(p.SenderMAC[:], frame[22:])
	p.SenderAddr = netip.AddrFrom4([4]byte(frame[offsetSPA:]))
	copy(p.TargetMAC[:], frame[32:])
	p.TargetAddr = netip.AddrFrom4([4]byte(frame[offsetTPA:]))
	if len(frame) >= frameLength+wire.SealLength {
		copy(p.Seal[:], frame[frameLength:])
	}
	return p, true
}

// Protocol is ARP as a wire.Protocol. The zero value is ready.
type Protocol struct{}

var _ wire.Protocol = Protocol{}

// Name is "arp".
func (Protocol) Name() string { return "arp" }

// EtherType is that of ARP.
func (Protocol) EtherType() uint16 { return EtherType }

// Key is the whole address.
func (Protocol) Key(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// Filter accepts packets whose target address is in targets, or whose sender
// address is in sources.
func (Protocol) Filter(targets, sources []wire.Range) []bpf.Instruction {
	out := []bpf.Instruction{
		// Ethernet, IPv4; lengths 6 and 4.
		bpf.LoadAbsolute{Off: 14, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: hardwareEthernet<<16 | protocolIPv4, SkipFalse: 2},
		bpf.LoadAbsolute{Off: 18, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6<<8 | 4, SkipTrue: 1},
		wire.Reject(),
	}
	out = append(out, wire.Search(offsetTPA, targets)...)
	out = append(out, wire.Search(offsetSPA, sources)...)
	return append(out, wire.Reject())
}

// Parse yields what an ARP packet says. A request is a Question about its target
// and at the same time an Advertisement of its sender's address.
func (Protocol) Parse(frame []byte, yield func(wire.Message)) {
	p, ok := Parse(frame)
	if !ok || p.SenderMAC.IsGroup() || p.SenderMAC.IsZero() {
		return
	}
	advertisement := wire.Message{Kind: wire.Advertisement, Address: p.SenderAddr, From: p.SenderMAC, To: p.EthernetTo, Seal: p.Seal}
	switch {
	case p.Op == OpReply && !p.SenderAddr.IsUnspecified():
		yield(advertisement)
	case p.Op != OpRequest:
	case p.SenderAddr.IsUnspecified():
		yield(wire.Message{Kind: wire.Probe, Address: p.TargetAddr, From: p.SenderMAC, Asker: p.SenderAddr, To: p.EthernetTo, Seal: p.Seal})
	case p.SenderAddr == p.TargetAddr:
		yield(advertisement)
	default:
		yield(advertisement)
		yield(wire.Message{Kind: wire.Question, Address: p.TargetAddr, From: p.SenderMAC, Asker: p.SenderAddr, To: p.EthernetTo, Seal: p.Seal})
	}
}

// Answer is a reply to the asker alone.
func (Protocol) Answer(m wire.Message, self wire.MAC, seal wire.Seal) []byte {
	return Packet{
		EthernetTo: m.From, EthernetFrom: self, Op: OpReply,
		SenderMAC: self, SenderAddr: m.Address,
		TargetMAC: m.From, TargetAddr: m.Asker, Seal: seal,
	}.Frame()
}

// Probe is a request from 0.0.0.0, which changes no host's cache.
func (Protocol) Probe(address netip.Addr, self, to wire.MAC, seal wire.Seal) []byte {
	if to.IsZero() {
		to = wire.Broadcast
	}
	return Packet{
		EthernetTo: to, EthernetFrom: self, Op: OpRequest,
		SenderMAC: self, SenderAddr: netip.IPv4Unspecified(), TargetAddr: address, Seal: seal,
	}.Frame()
}

// Question is an ordinary request.
func (Protocol) Question(address, asker netip.Addr, self wire.MAC, seal wire.Seal) []byte {
	return Packet{
		EthernetTo: wire.Broadcast, EthernetFrom: self, Op: OpRequest,
		SenderMAC: self, SenderAddr: asker, TargetAddr: address, Seal: seal,
	}.Frame()
}

// Announce is a gratuitous request and a gratuitous reply, both to everyone.
func (Protocol) Announce(address netip.Addr, self wire.MAC, seal wire.Seal) [][]byte {
	request := Packet{
		EthernetTo: wire.Broadcast, EthernetFrom: self, Op: OpRequest,
		SenderMAC: self, SenderAddr: address, TargetAddr: address, Seal: seal,
	}
	reply := request
	reply.Op, reply.TargetMAC = OpReply, self
	return [][]byte{request.Frame(), reply.Frame()}
}
