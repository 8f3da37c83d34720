// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"net/netip"
	"testing"

	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

var (
	sealAddress  = netip.MustParseAddr("192.0.2.200")
	sealOther    = netip.MustParseAddr("2001:db8::1")
	sealMAC      = MAC{2, 0, 0, 0, 0, 1}
	sealAnother  = MAC{2, 0, 0, 0, 0, 2}
	sealA, sealB = nodeinfo.IDOf("node-1"), nodeinfo.IDOf("node-2")
)

func TestHint(t *testing.T) {
	key := HintKey([]byte("gossip"), sealA)
	s := NewHint(key, Advertisement, sealAddress, sealMAC, sealA, 77)
	if s.Kind() != Hint || s.Node() != sealA.Short() || s.Stamp() != 77 || !s.OpensHint(key, Advertisement, sealAddress, sealMAC, sealA) {
		t.Fatalf("%x does not open", s)
	}
	later := s
	later[9]++
	for what, opens := range map[string]bool{
		"another key":              s.OpensHint(HintKey([]byte("other"), sealA), Advertisement, sealAddress, sealMAC, sealA),
		"another node's key":       s.OpensHint(HintKey([]byte("gossip"), sealB), Advertisement, sealAddress, sealMAC, sealA),
		"another kind":             s.OpensHint(key, Probe, sealAddress, sealMAC, sealA),
		"another address":          s.OpensHint(key, Advertisement, sealOther, sealMAC, sealA),
		"another hardware address": s.OpensHint(key, Advertisement, sealAddress, sealAnother, sealA),
		"another node":             s.OpensHint(key, Advertisement, sealAddress, sealMAC, sealB),
		"another stamp":            later.OpensHint(key, Advertisement, sealAddress, sealMAC, sealA),
		"as an answer":             s.OpensAnswer(key, Seal{}, sealAddress, sealMAC, sealA, sealB),
	} {
		if opens {
			t.Errorf("opens with %s", what)
		}
	}
}

func TestAnswer(t *testing.T) {
	secret := []byte("of the two")
	asked := NewHint(HintKey([]byte("gossip"), sealB), Probe, sealAddress, sealAnother, sealB, 77)
	s := NewAnswer(secret, asked, sealAddress, sealMAC, sealA, sealB)
	if s.Kind() != Answer || s.Stamp() != 77 || !s.OpensAnswer(secret, asked, sealAddress, sealMAC, sealA, sealB) {
		t.Fatalf("%x does not open", s)
	}
	next := NewHint(HintKey([]byte("gossip"), sealB), Probe, sealAddress, sealAnother, sealB, 78)
	for what, opens := range map[string]bool{
		"another secret":   s.OpensAnswer([]byte("gossip"), asked, sealAddress, sealMAC, sealA, sealB),
		"another question": s.OpensAnswer(secret, next, sealAddress, sealMAC, sealA, sealB),
		"another address":  s.OpensAnswer(secret, asked, sealOther, sealMAC, sealA, sealB),
		"another MAC":      s.OpensAnswer(secret, asked, sealAddress, sealAnother, sealA, sealB),
		"another asker":    s.OpensAnswer(secret, asked, sealAddress, sealMAC, sealA, sealA),
		"as a hint":        s.OpensHint(secret, Advertisement, sealAddress, sealMAC, sealA),
	} {
		if opens {
			t.Errorf("opens with %s", what)
		}
	}
}

func FuzzSeal(f *testing.F) {
	key := HintKey([]byte("gossip"), sealA)
	good := NewHint(key, Advertisement, sealAddress, sealMAC, sealA, 1)
	f.Add(good[:])
	old := NewSeal(key, sealA, sealAddress, sealMAC)
	f.Add(old[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Seal
		copy(s[:], b)
		s.Kind()
		s.Node()
		s.Stamp()
		_, opened := s.Open([][]byte{key}, sealAddress, sealMAC)
		if opened && s != old {
			t.Errorf("%x opens", s)
		}
		if s.OpensHint(key, Advertisement, sealAddress, sealMAC, sealA) && s[9] == 1 && s != good {
			t.Errorf("%x opens", s)
		}
		if s.OpensAnswer(key, good, sealAddress, sealMAC, sealA, sealB) {
			t.Errorf("%x opens", s)
		}
	})
}

// A seal is checked for every frame about an address that is announced here: the
// check is to take less than 2 us.
func BenchmarkSeal(b *testing.B) {
	key := HintKey([]byte("gossip"), sealA)
	hint := NewHint(key, Probe, sealAddress, sealMAC, sealA, 1)
	answer := NewAnswer(key, hint, sealAddress, sealMAC, sealA, sealB)
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			NewHint(key, Advertisement, sealAddress, sealMAC, sealA, 1)
		}
	})
	b.Run("hint", func(b *testing.B) {
		for b.Loop() {
			hint.OpensHint(key, Probe, sealAddress, sealMAC, sealA)
		}
	})
	b.Run("answer", func(b *testing.B) {
		for b.Loop() {
			answer.OpensAnswer(key, hint, sealAddress, sealMAC, sealA, sealB)
		}
	})
}
