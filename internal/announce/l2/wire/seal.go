// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// SealLength is the length of a Seal in bytes: as many as Ethernet pads an ARP
// packet with.
const SealLength = 18

// Seal distinguishes our own agents from other hosts, also where they do not hear each
// other's gossip. Every frame that an agent sends carries one, where other hosts
// see padding or an option that they do not know. There are two:
//
//	hint    magic 2 | node 4 | stamp 4 | code 8
//	answer  the same, where stamp is that of the question
//
// A hint is on what everybody hears. Its code binds sender, kind, address, hardware
// address and stamp, under a key that is derived for the sender from the gossip
// key. Any holder of the gossip key can make one in another node's name, and a
// recorded one opens as long as the stamp is new, so agents do not act on a hint alone
// but ask its sender.
//
// An answer replies to one question, itself sealed: its code binds the question's
// code, and is made under a secret of the two nodes. No third node can make it,
// and it is valid for that question alone.
//
// Agents of a former version (up to 0.1) seal as NewSeal does; see Kind.
type Seal [SealLength]byte

// SealKind is what a seal says that it is.
type SealKind uint8

const (
	// Unsealed: there is none.
	Unsealed SealKind = iota
	// OldSeal is that of a former version.
	OldSeal
	// Hint and Answer are as Seal has them.
	Hint
	Answer
)

// Magics make a seal recognizable before its code is computed.
var (
	oldMagic    = [2]byte{0xca, 0x5e}
	hintMagic   = [2]byte{0xca, 0x61}
	answerMagic = [2]byte{0xca, 0x62}
)

// HintKey returns the key of node's hints.
func HintKey(gossip []byte, node nodeinfo.ID) []byte {
	h := hmac.New(sha256.New, gossip)
	h.Write([]byte("causeway hint"))
	h.Write(node[:])
	return h.Sum(nil)
}

// NewHint makes the seal of a frame of kind, Advertisement or Probe, about address from
// mac. stamp is the sender's clock, in StampUnits.
func NewHint(key []byte, kind Kind, address netip.Addr, mac MAC, node nodeinfo.ID, stamp uint32) Seal {
	s := begin(hintMagic, node, stamp)
	s.close(hintCode(key, kind, address, mac, node, stamp))
	return s
}

// NewAnswer makes node's answer to a question with the seal asked.
func NewAnswer(secret []byte, asked Seal, address netip.Addr, mac MAC, node, asker nodeinfo.ID) Seal {
	s := begin(answerMagic, node, asked.Stamp())
	s.close(answerCode(secret, asked, address, mac, node, asker))
	return s
}

// OpensHint reports whether s is node's hint under key.
func (s Seal) OpensHint(key []byte, kind Kind, address netip.Addr, mac MAC, node nodeinfo.ID) bool {
	code := hintCode(key, kind, address, mac, node, s.Stamp())
	return s.Kind() == Hint && s.Node() == node.Short() && hmac.Equal(code[:], s[10:])
}

// OpensAnswer reports whether s is node's answer to the question with the seal asked.
func (s Seal) OpensAnswer(secret []byte, asked Seal, address netip.Addr, mac MAC, node, asker nodeinfo.ID) bool {
	code := answerCode(secret, asked, address, mac, node, asker)
	return s.Kind() == Answer && s.Node() == node.Short() && hmac.Equal(code[:], s[10:])
}

// Kind returns the kind that s claims to be.
func (s Seal) Kind() SealKind {
	switch [2]byte(s[:2]) {
	case oldMagic:
		return OldSeal
	case hintMagic:
		return Hint
	case answerMagic:
		return Answer
	}
	return Unsealed
}

// Node is the node that s, a Hint or Answer, claims to be from.
func (s Seal) Node() nodeinfo.ShortID { return nodeinfo.ShortID(s[2:6]) }

// Stamp is that of a Hint, or of the question of an Answer.
func (s Seal) Stamp() uint32 { return binary.BigEndian.Uint32(s[6:]) }

// IsZero reports that there is no seal.
func (s Seal) IsZero() bool { return s == Seal{} }

func begin(magic [2]byte, node nodeinfo.ID, stamp uint32) (s Seal) {
	copy(s[0:], magic[:])
	copy(s[2:], node[:4])
	binary.BigEndian.PutUint32(s[6:], stamp)
	return s
}

func (s *Seal) close(code [8]byte) { copy(s[10:], code[:]) }

func hintCode(key []byte, kind Kind, address netip.Addr, mac MAC, node nodeinfo.ID, stamp uint32) [8]byte {
	var b [36]byte
	b[0] = 1
	b[1] = byte(kind)
	a := address.As16()
	copy(b[2:], a[:])
	copy(b[18:], mac[:])
	copy(b[24:], node[:])
	binary.BigEndian.PutUint32(b[32:], stamp)
	return code(key, b[:])
}

func answerCode(secret []byte, asked Seal, address netip.Addr, mac MAC, node, asker nodeinfo.ID) [8]byte {
	var b [57]byte
	b[0] = 2
	copy(b[1:], asked[:])
	a := address.As16()
	copy(b[19:], a[:])
	copy(b[35:], mac[:])
	copy(b[41:], node[:])
	copy(b[49:], asker[:])
	return code(secret, b[:])
}

// code is SHA-256 over key and b, cut. HMAC costs more than twice as much and adds
// nothing here: what is hashed has one length for each first byte, and of the sum
// too little is shown to go on from.
func code(key, b []byte) [8]byte {
	if len(key) != sha256.Size {
		k := sha256.Sum256(key)
		key = k[:]
	}
	var buf [sha256.Size + 57]byte
	copy(buf[:], key)
	n := copy(buf[sha256.Size:], b)
	sum := sha256.Sum256(buf[:sha256.Size+n])
	return [8]byte(sum[:8])
}

// NewSeal makes the seal of a former version, which has no stamp:
//
//	magic 2 | node 8 | code 8
func NewSeal(key []byte, node nodeinfo.ID, address netip.Addr, mac MAC) Seal {
	var s Seal
	copy(s[0:], oldMagic[:])
	copy(s[2:], node[:])
	s.close(oldCode(key, node, address, mac))
	return s
}

// Open returns the node that made s, a seal of a former version, if it was made
// with one of keys.
func (s Seal) Open(keys [][]byte, address netip.Addr, mac MAC) (nodeinfo.ID, bool) {
	if s.Kind() != OldSeal {
		return nodeinfo.ID{}, false
	}
	node := nodeinfo.ID(s[2:10])
	for _, key := range keys {
		if code := oldCode(key, node, address, mac); hmac.Equal(code[:], s[10:]) {
			return node, true
		}
	}
	return nodeinfo.ID{}, false
}

func oldCode(key []byte, node nodeinfo.ID, address netip.Addr, mac MAC) [8]byte {
	h := hmac.New(sha256.New, key)
	a := address.As16()
	h.Write([]byte("causeway seal"))
	h.Write(node[:])
	h.Write(a[:])
	h.Write(mac[:])
	return [8]byte(h.Sum(nil)[:8])
}
