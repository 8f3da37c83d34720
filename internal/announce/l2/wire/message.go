// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"

	"golang.org/x/net/bpf"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// MAC is an Ethernet hardware address.
type MAC = nodeinfo.MAC

// Broadcast is every host on the link.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Kind is what a frame says about an address.
type Kind uint8

const (
	// Question: a host that has an address of its own wants to know who has
	// this one.
	Question Kind = iota + 1
	// Probe: a host asks who has the address in order to use it (RFC 5227
	// section 2.1.1, RFC 4862 section 5.4.2).
	Probe
	// Advertisement: the sender says, or shows by using it, that it has the address.
	Advertisement
)

// String names the kind.
func (k Kind) String() string {
	return [...]string{"invalid", "question", "probe", "advertisement"}[min(k, Advertisement)]
}

// Message is one thing a frame says.
type Message struct {
	Kind Kind
	// Address that it is about.
	Address netip.Addr
	// From is the hardware address of the sender.
	From MAC
	// Asker is the sender's own protocol address in a Question.
	Asker netip.Addr
	// To is the hardware address that the frame was sent to.
	To MAC
	// Seal is what the frame carries where ours have a seal; not opened yet.
	Seal Seal
}

// Protocol is address resolution for one family. Frames are whole Ethernet
// frames without checksum. Implementations are pure and safe for concurrent
// use.
type Protocol interface {
	// Name is "arp" or "ndp".
	Name() string
	// EtherType of the frames.
	EtherType() uint16
	// Filter accepts the frames that ask about targets, and those whose sender
	// advertises one of sources.
	Filter(targets, sources []Range) []bpf.Instruction
	// Parse calls yield for each thing that frame says. Malformed frames, and
	// those that a host must ignore by the protocol's RFC, say nothing.
	Parse(frame []byte, yield func(Message))
	// Answer returns the reply of the host self to m, a Question or a Probe. Like
	// the other frames it carries seal, unless that is zero.
	Answer(m Message, self MAC, seal Seal) []byte
	// Probe asks who has address, without advertising it. A zero to asks everyone.
	Probe(address netip.Addr, self, to MAC, seal Seal) []byte
	// Question asks everyone who has address, as a host does whose own address is
	// asker: fabrics that keep probes from going everywhere let it through.
	Question(address, asker netip.Addr, self MAC, seal Seal) []byte
	// Announce returns the frames that make every host on the link use self for
	// address from now on.
	Announce(address netip.Addr, self MAC, seal Seal) [][]byte
	// Key is the part of an address that Filter's ranges are about.
	Key(address netip.Addr) uint32
}
