// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

const (
	// answerAge is how old a question may be that an answer proves anything for.
	answerAge = 500 * time.Millisecond
	// hintAge is by how much a hint may be older, or newer, than what its sender's
	// clock should be: both are known within a round trip.
	hintAge = 3 * time.Second
)

// trust is how far a frame is to be believed.
type trust uint8

const (
	// stranger: no agent's. It carries no seal, or one that does not open.
	stranger trust = iota
	// replayed: an agent's seal, made too long ago. Somebody has recorded it.
	replayed
	// hinted: an agent seems to have sent it. It is a reason to ask, and no more.
	hinted
	// proven: it answers a question that this node has just asked.
	proven
)

// sealer seals this node's frames and opens others'. Keys are rotated like those
// of the gossip: opened at once, sealed with after the grace. It is safe for
// concurrent use.
type sealer struct {
	node   string
	id     wire.NodeID
	grace  time.Duration
	start  time.Time
	offset uint32
	now    func() time.Time

	// secrets gives the secrets that this node and another have in common, the one
	// to use first. clock gives another's stamp of now, if it is known. Both are
	// members'.
	secrets func(node string) [][]byte
	clock   func(node string) (stamp uint32, known bool)

	mu    sync.RWMutex
	seal  []byte // the gossip key to use; nil before the first set
	open  [][]byte
	own   []byte // the key of this node's hints
	nodes map[wire.ShortID][]sealed
}

// sealed is another node whose seals may come.
type sealed struct {
	name  string
	id    wire.NodeID
	old   bool     // its agent may be of a former version
	hints [][]byte // keys of its hints, one for each gossip key
}

func newSealer(node string, grace time.Duration) *sealer {
	return &sealer{
		node: node, id: wire.ID(node), grace: grace, start: time.Now(), offset: rand.Uint32(), now: time.Now,
		secrets: func(string) [][]byte { return nil },
		clock:   func(string) (uint32, bool) { return 0, false },
	}
}

func (s *sealer) set(keys [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seal == nil {
		s.seal, s.open = keys[0], keys
		s.derive()
		return
	}
	s.open = append(append([][]byte{}, keys...), s.seal)
	s.derive()
	time.AfterFunc(s.grace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seal, s.open = keys[0], keys
		s.derive()
	})
}

// know replaces the nodes whose seals may come, and tells of each whether its
// agent may be of a former version.
func (s *sealer) know(names map[string]bool) {
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
	s.nodes = make(map[wire.ShortID][]sealed, len(names))
	for name, old := range names {
		id := wire.ID(name)
		s.nodes[id.Short()] = append(s.nodes[id.Short()], sealed{name: name, id: id, old: old})
	}
	s.derive()
}

// derive makes what depends on the gossip keys. The lock is held.
func (s *sealer) derive() {
	if s.seal == nil {
		return
	}
	s.own = wire.HintKey(s.seal, s.id)
	for _, list := range s.nodes {
		for i := range list {
			n := &list[i]
			n.hints = nil
			for _, key := range s.open {
				n.hints = append(n.hints, wire.HintKey(key, n.id))
			}
		}
	}
}

// keyed tells whether there is a key.
func (s *sealer) keyed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seal != nil
}

// stamp is this node's clock. It starts anywhere and does not depend on the
// wall's.
func (s *sealer) stamp() uint32 {
	return s.offset + uint32(s.now().Sub(s.start)/(wire.StampUnit*time.Millisecond))
}

// hint gives what seals a frame from mac.
func (s *sealer) hint(mac wire.MAC) func(wire.Kind, netip.Addr) wire.Seal {
	return func(kind wire.Kind, a netip.Addr) wire.Seal {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return wire.NewHint(s.own, kind, a, mac, s.id, s.stamp())
	}
}

// answer gives what seals an answer from mac: to one of ours one that proves
// something.
func (s *sealer) answer(mac wire.MAC) func(wire.Message) wire.Seal {
	hint := s.hint(mac)
	return func(m wire.Message) wire.Seal {
		if m.Seal.Kind() == wire.Hint {
			s.mu.RLock()
			defer s.mu.RUnlock()
			for _, n := range s.nodes[m.Seal.Node()] {
				// Whether the question is one of its own does not matter: nobody else can
				// use the answer.
				if secrets := s.secrets(n.name); len(secrets) > 0 {
					return wire.NewAnswer(secrets[0], m.Seal, m.Address, mac, s.id, n.id)
				}
			}
		}
		return hint(wire.Claim, m.Address)
	}
}

// sender gives the node of ours that sent m, which came to self, and how far it is
// to be believed. aliases, which may be nil, gives the other hardware addresses
// that a node has where it seems to have mac: a bond sends with those of its
// ports.
func (s *sealer) sender(m wire.Message, self wire.MAC, aliases func(node string, mac wire.MAC) []wire.MAC) (string, trust) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	kind := m.Kind
	if kind == wire.Question {
		kind = wire.Claim
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
			return s.node, hinted
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
			return "", replayed // another's, flooded by a switch: nobody here can tell whose it is
		}
		age := time.Duration(int32(s.stamp()-m.Seal.Stamp())) * wire.StampUnit * time.Millisecond
		if age < 0 || age > answerAge || m.Kind != wire.Claim {
			return "", replayed
		}
		asked := wire.NewHint(s.own, wire.Probe, m.Address, self, s.id, m.Seal.Stamp())
		for _, n := range s.nodes[m.Seal.Node()] {
			for _, secret := range s.secrets(n.name) {
				if try(n.name, func(mac wire.MAC) bool {
					return m.Seal.OpensAnswer(secret, asked, m.Address, mac, n.id, s.id)
				}) {
					return n.name, proven
				}
			}
		}
	}
	return "", stranger
}

// oldSender opens the seal of an agent of a former version. It has no stamp; that
// a frame was sent to this node alone is the best proof that there is.
func (s *sealer) oldSender(m wire.Message) (string, trust) {
	id, ok := m.Seal.Open(s.open, m.Address, m.From)
	if !ok {
		return "", stranger
	}
	for _, n := range s.nodes[id.Short()] {
		switch {
		case n.id != id:
		case !n.old:
			return n.name, replayed
		case m.To.IsGroup():
			return n.name, hinted
		default:
			return n.name, proven
		}
	}
	return "", stranger
}

// fresh judges a hint by its sender's clock. While that is not known, any is a
// reason to ask.
func (s *sealer) fresh(node string, stamp uint32) trust {
	now, known := s.clock(node)
	if !known {
		return hinted
	}
	off := time.Duration(int32(now-stamp)) * wire.StampUnit * time.Millisecond
	if off.Abs() > hintAge {
		return replayed
	}
	return hinted
}
