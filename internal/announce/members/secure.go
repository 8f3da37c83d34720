// SPDX-License-Identifier: Apache-2.0

package members

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// Identity is the key pair of an agent. Its public half is published where that
// node alone may write, so that no other node can speak for it.
type Identity struct{ private *ecdh.PrivateKey }

// PublicKeyLength is the length of a public key in bytes (X25519).
const PublicKeyLength = 32

// NewIdentity makes a key pair.
func NewIdentity() (*Identity, error) {
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key pair: %w", err)
	}
	return &Identity{k}, nil
}

// Public returns the public half.
func (i *Identity) Public() []byte { return i.private.PublicKey().Bytes() }

// secret returns the secret that two nodes have in common under a gossip key. With
// public, the other's key, no third node has it; without, every holder of the gossip
// key does.
func (i *Identity) secret(gossip, public []byte, a, b string) []byte {
	h := hmac.New(sha256.New, gossip)
	h.Write([]byte("causeway pair\x00" + min(a, b) + "\x00" + max(a, b) + "\x00"))
	if i != nil && len(public) > 0 {
		key, err := ecdh.X25519().NewPublicKey(public)
		if err != nil {
			return nil
		}
		shared, err := i.private.ECDH(key)
		if err != nil {
			return nil // a point of low order: no key that an agent makes
		}
		h.Write(shared)
	}
	return h.Sum(nil)
}

// A packet from one agent to another:
//
//	magic 2 | from 8 | to 8 | boot 8 | number 8 | AES-256-GCM(kind 1 | body) | tag 16
//
// from and to are nodeinfo.IDs. boot is the sender's, random at each of its starts;
// number rises with each of its packets and is the nonce. The key is derived from
// the secret of the two nodes for this direction and boot, so that a packet opens
// for the one that it was made for, and under the number that it was made with.
const (
	headerLength = 34
	tagLength    = 16
)

// packetMagic does not begin any packet of memberlist's.
var packetMagic = [2]byte{0xca, 0x57}

// header is the part of a packet that is not encrypted.
type header struct {
	from, to     nodeinfo.ID
	boot, number uint64
}

func (h header) encode() []byte {
	b := make([]byte, 0, headerLength+64+tagLength)
	b = append(b, packetMagic[:]...)
	b = append(append(b, h.from[:]...), h.to[:]...)
	b = binary.BigEndian.AppendUint64(b, h.boot)
	return binary.BigEndian.AppendUint64(b, h.number)
}

// decodeHeader reads the header of a packet and returns what is encrypted.
func decodeHeader(b []byte) (h header, sealed []byte, ok bool) {
	if len(b) < headerLength+1+tagLength || [2]byte(b[:2]) != packetMagic {
		return header{}, nil, false
	}
	copy(h.from[:], b[2:])
	copy(h.to[:], b[10:])
	h.boot, h.number = binary.BigEndian.Uint64(b[18:]), binary.BigEndian.Uint64(b[26:])
	return h, b[headerLength:], true
}

// directKey returns the cipher of packets from one node to another.
func directKey(secret []byte, from, to nodeinfo.ID, boot uint64) cipher.AEAD {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte("causeway direct"))
	h.Write(from[:])
	h.Write(to[:])
	h.Write(binary.BigEndian.AppendUint64(nil, boot))
	block, err := aes.NewCipher(h.Sum(nil))
	if err != nil {
		panic(err) // the key has the right length
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // the block has the right length
	}
	return aead
}

func nonce(number uint64) []byte {
	return binary.BigEndian.AppendUint64(make([]byte, 4, 12), number)
}

// window knows which numbers of a boot have come: each counts once, and none that
// is older than the last 64.
type window struct {
	top  uint64
	seen uint64 // bit i: top-i
}

// take reports whether number is new, and notes it.
func (w *window) take(number uint64) bool {
	switch {
	case number > w.top:
		if shift := number - w.top; shift < 64 {
			w.seen = w.seen<<shift | 1
		} else {
			w.seen = 1
		}
		w.top = number
		return true
	case w.top-number >= 64 || w.seen>>(w.top-number)&1 == 1:
		return false
	}
	w.seen |= 1 << (w.top - number)
	return true
}

// sealKeys are the ciphers of what goes to a peer and comes from it.
type sealKeys struct {
	secrets [][]byte    // the one to use first
	send    cipher.AEAD // nil until needed
	boot    uint64      // of receive
	receive []cipher.AEAD
}

// secretsOf returns the secrets that this node and p have in common, the one to seal
// with first. The lock is held.
func (m *Members) secretsOf(p *peer) [][]byte {
	if p.keys.secrets == nil && m.keys != nil {
		public := p.public
		if m.identity == nil {
			public = nil
		}
		for _, k := range m.accepted() {
			if s := m.identity.secret(k, public, m.cfg.Name, p.name); s != nil {
				p.keys.secrets = append(p.keys.secrets, s)
			}
		}
	}
	return p.keys.secrets
}

// accepted returns the gossip keys, the one in use first. The lock is held.
func (m *Members) accepted() [][]byte {
	if m.using == nil {
		return m.keys
	}
	return append([][]byte{m.using}, m.keys...)
}

// forgetSecrets has all secrets derived again. The lock is held.
func (m *Members) forgetSecrets() {
	for _, p := range m.peers {
		p.keys = sealKeys{}
	}
	if m.keys != nil {
		m.current.Store(&Keys{Accepted: m.accepted()})
	}
}

// bound reports whether only p can speak for itself: both have published a key.
// The lock is held.
func (m *Members) bound(p *peer) bool { return m.identity != nil && len(p.public) > 0 }

// seal returns the packet for p. It is nil as long as there is no key. The lock is
// held.
func (m *Members) seal(p *peer, k kind, body []byte) []byte {
	secrets := m.secretsOf(p)
	if len(secrets) == 0 {
		return nil
	}
	if p.keys.send == nil {
		p.keys.send = directKey(secrets[0], m.id, p.id, m.boot)
	}
	m.sent++
	h := header{m.id, p.id, m.boot, m.sent}.encode()
	return p.keys.send.Seal(h, nonce(m.sent), append([]byte{byte(k)}, body...), h)
}

// open decrypts a packet from p. The lock is held.
func (m *Members) open(p *peer, h header, head, sealed []byte) (k kind, body []byte, ok bool) {
	if p.keys.receive == nil || p.keys.boot != h.boot {
		p.keys.boot, p.keys.receive = h.boot, nil
		for _, s := range m.secretsOf(p) {
			p.keys.receive = append(p.keys.receive, directKey(s, p.id, m.id, h.boot))
		}
	}
	for _, aead := range p.keys.receive {
		if plain, err := aead.Open(nil, nonce(h.number), sealed, head); err == nil && len(plain) > 0 {
			return kind(plain[0]), plain[1:], true
		}
	}
	return 0, nil, false
}
