// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"net/netip"
)

// SealLength is the length of a Seal in bytes: as many as Ethernet pads an ARP
// packet with.
const SealLength = 18

// Seal tells our own agents from strangers, also where they do not hear each
// other's gossip: it names the sending node under the gossip key. Every frame
// that an agent sends carries one, where other hosts see padding or an option
// that they do not know.
//
//	magic 2 | node 8 | code 8
//
// The code binds node, address and hardware address. It is no protection
// against a replay: whoever can send frames on the link can take any address
// anyway.
type Seal [SealLength]byte

// NodeID stands for a node's name in a Seal.
type NodeID [8]byte

// sealMagic makes a seal recognizable before its code is computed.
var sealMagic = [2]byte{0xca, 0x5e}

// ID gives the NodeID of a node.
func ID(node string) NodeID {
	h := sha256.Sum256([]byte("causeway node " + node))
	return NodeID(h[:8])
}

// NewSeal makes the seal of node for frames about address from mac.
func NewSeal(key []byte, node NodeID, address netip.Addr, mac MAC) Seal {
	var s Seal
	copy(s[0:], sealMagic[:])
	copy(s[2:], node[:])
	code := sealCode(key, node, address, mac)
	copy(s[10:], code[:])
	return s
}

// Open gives the node that made s, if it was made with one of keys.
func (s Seal) Open(keys [][]byte, address netip.Addr, mac MAC) (NodeID, bool) {
	if [2]byte(s[:2]) != sealMagic {
		return NodeID{}, false
	}
	node := NodeID(s[2:10])
	for _, key := range keys {
		if code := sealCode(key, node, address, mac); hmac.Equal(code[:], s[10:]) {
			return node, true
		}
	}
	return NodeID{}, false
}

// IsZero tells that there is no seal.
func (s Seal) IsZero() bool { return s == Seal{} }

func sealCode(key []byte, node NodeID, address netip.Addr, mac MAC) [8]byte {
	h := hmac.New(sha256.New, key)
	a := address.As16()
	h.Write([]byte("causeway seal"))
	h.Write(node[:])
	h.Write(a[:])
	h.Write(mac[:])
	return [8]byte(h.Sum(nil)[:8])
}
