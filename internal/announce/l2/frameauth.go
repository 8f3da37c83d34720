// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

const (
	// answerAge is how old a question may be that an answer proves anything for.
	answerAge = 500 * time.Millisecond
	// hintAge is by how much a hint may be older, or newer, than what its sender's
	// clock should be: both are known within a round trip.
	hintAge = 3 * time.Second
)

// verification is how far the sender of a frame is verified.
type verification uint8

const (
	// foreign: no agent's. It carries no seal, or one that does not open.
	foreign verification = iota
	// replayed: an agent's seal, made too long ago. It has been recorded.
	replayed
	// unverified: an agent seems to have sent it. It is a reason to ask, and no more.
	unverified
	// verified: it answers a question that this node has just asked.
	verified
)

// keyring has the secrets and clocks of the nodes. *members.Members is one.
type keyring interface {
	// Keys returns the gossip keys, nil for none; another pointer after each change.
	Keys() *members.Keys
	// Secrets returns the secrets that this node and another have in common, the one
	// to use first.
	Secrets(node string) [][]byte
	// Stamp returns this node's clock, in members.StampUnit, and Clock what another's
	// says now, if that is known.
	Stamp() uint32
	Clock(node string) (stamp uint32, known bool)
}

// frameAuth seals this node's frames and opens others'. It is safe for concurrent
// use.
type frameAuth struct {
	keyring
	node string
	id   nodeinfo.ID

	mu    sync.RWMutex
	keys  *members.Keys // of what follows; nil before the first
	own   []byte        // the key of this node's hints
	nodes map[nodeinfo.ShortID][]sealed
}

// sealed is another node whose seals may come.
type sealed struct {
	name  string
	id    nodeinfo.ID
	old   bool     // its agent may be of a former version
	hints [][]byte // keys of its hints, one for each gossip key
}

func newFrameAuth(node string, k keyring) *frameAuth {
	return &frameAuth{keyring: k, node: node, id: nodeinfo.IDOf(node)}
}

// know replaces the nodes whose seals may come, with whether the agent of each may be
// of a former version.
func (s *frameAuth) know(names map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for _, list := range s.nodes {
		for i := range list {
			if old, ok := names[list[i].name]; ok {
				list[i].old = old
				same++
				continue
			}
			same = -1 << 30
		}
	}
	if same == len(names) {
		return
	}
	s.nodes = make(map[nodeinfo.ShortID][]sealed, len(names))
	for name, old := range names {
		id := nodeinfo.IDOf(name)
		s.nodes[id.Short()] = append(s.nodes[id.Short()], sealed{name: name, id: id, old: old})
	}
	s.derive()
}

// lock locks for reading, with what is derived from the present keys.
func (s *frameAuth) lock() {
	s.mu.RLock()
	for keys := s.Keys(); s.keys != keys; keys = s.Keys() {
		s.mu.RUnlock()
		s.mu.Lock()
		s.keys = keys
		s.derive()
		s.mu.Unlock()
		s.mu.RLock()
	}
}

// derive makes what depends on the gossip keys. The lock is held.
func (s *frameAuth) derive() {
	if s.keys == nil {
		return
	}
	s.own = wire.HintKey(s.keys.Accepted[0], s.id)
	for _, list := range s.nodes {
		for i := range list {
			n := &list[i]
			n.hints = nil
			for _, key := range s.keys.Accepted {
				n.hints = append(n.hints, wire.HintKey(key, n.id))
			}
		}
	}
}

// hint returns what seals a frame from mac.
func (s *frameAuth) hint(mac wire.MAC) func(wire.Kind, netip.Addr) wire.Seal {
	return func(kind wire.Kind, a netip.Addr) wire.Seal {
		s.lock()
		defer s.mu.RUnlock()
		return wire.NewHint(s.own, kind, a, mac, s.id, s.Stamp())
	}
}

// answer returns what seals an answer from mac: to one of ours one that proves
// something.
func (s *frameAuth) answer(mac wire.MAC) func(wire.Message) wire.Seal {
	hint := s.hint(mac)
	return func(m wire.Message) wire.Seal {
		if seal, ok := s.proof(m, mac); ok {
			return seal
		}
		return hint(wire.Advertisement, m.Address)
	}
}

// proof seals an answer to m, a question of a node with which this one has a secret
// in common. Whether the question is one of its own does not matter: no third node
// can use the answer.
func (s *frameAuth) proof(m wire.Message, mac wire.MAC) (seal wire.Seal, ok bool) {
	if m.Seal.Kind() != wire.Hint {
		return seal, false
	}
	s.lock()
	defer s.mu.RUnlock()
	for _, n := range s.nodes[m.Seal.Node()] {
		if secrets := s.Secrets(n.name); len(secrets) > 0 {
			return wire.NewAnswer(secrets[0], m.Seal, m.Address, mac, s.id, n.id), true
		}
	}
	return seal, false
}

// sender returns the node of ours that sent m, which came to self, and how far it is
// to be believed. aliases, which may be nil, returns the other hardware addresses
// that a node has where it seems to have mac: a bond sends with those of its
// ports.
func (s *frameAuth) sender(m wire.Message, self wire.MAC, aliases func(node string, mac wire.MAC) []wire.MAC) (string, verification) {
	s.lock()
	defer s.mu.RUnlock()
	kind := m.Kind
	if kind == wire.Question {
		kind = wire.Advertisement
	}
	try := func(name string, opens func(wire.MAC) bool) bool {
		if opens(m.From) {
			return true
		}
		if aliases == nil {
			return false
		}
		for _, mac := range aliases(name, m.From) {
			if opens(mac) {
				return true
			}
		}
		return false
	}
	switch m.Seal.Kind() {
	case wire.OldSeal:
		return s.oldSender(m)
	case wire.Hint:
		if m.Seal.Node() == s.id.Short() && m.Seal.OpensHint(s.own, kind, m.Address, m.From, s.id) {
			return s.node, unverified
		}
		for _, n := range s.nodes[m.Seal.Node()] {
			for _, key := range n.hints {
				if try(n.name, func(mac wire.MAC) bool { return m.Seal.OpensHint(key, kind, m.Address, mac, n.id) }) {
					return n.name, s.fresh(n.name, m.Seal.Stamp())
				}
			}
		}
	case wire.Answer:
		if m.To != self {
			return "", replayed // for another node, flooded by a switch; only that node can open it
		}
		age := time.Duration(int32(s.Stamp()-m.Seal.Stamp())) * members.StampUnit
		if age < 0 || age > answerAge || m.Kind != wire.Advertisement {
			return "", replayed
		}
		asked := wire.NewHint(s.own, wire.Probe, m.Address, self, s.id, m.Seal.Stamp())
		for _, n := range s.nodes[m.Seal.Node()] {
			for _, secret := range s.Secrets(n.name) {
				if try(n.name, func(mac wire.MAC) bool {
					return m.Seal.OpensAnswer(secret, asked, m.Address, mac, n.id, s.id)
				}) {
					return n.name, verified
				}
			}
		}
	}
	return "", foreign
}

// oldSender opens the seal of an agent of a former version. It has no stamp; that
// a frame was sent to this node alone is the best proof that there is.
func (s *frameAuth) oldSender(m wire.Message) (string, verification) {
	if s.keys == nil {
		return "", foreign
	}
	id, ok := m.Seal.Open(s.keys.Accepted, m.Address, m.From)
	if !ok {
		return "", foreign
	}
	for _, n := range s.nodes[id.Short()] {
		switch {
		case n.id != id:
		case !n.old:
			return n.name, replayed
		case m.To.IsGroup():
			return n.name, unverified
		default:
			return n.name, verified
		}
	}
	return "", foreign
}

// fresh compares a hint with its sender's clock. While that is not known, every hint
// is a reason to ask.
func (s *frameAuth) fresh(node string, stamp uint32) verification {
	now, known := s.Clock(node)
	if !known {
		return unverified
	}
	off := time.Duration(int32(now-stamp)) * members.StampUnit
	if off.Abs() > hintAge {
		return replayed
	}
	return unverified
}
