// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"sync"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/wire"
)

// sealer seals this node's frames and opens others'. Keys are rotated like those
// of the gossip: opened at once, sealed with after the grace. It is safe for
// concurrent use.
type sealer struct {
	node  wire.NodeID
	grace time.Duration

	mu   sync.RWMutex
	seal []byte // nil before the first set
	open [][]byte
}

func newSealer(node string, grace time.Duration) *sealer {
	return &sealer{node: wire.ID(node), grace: grace}
}

func (s *sealer) set(keys [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seal == nil {
		s.seal, s.open = keys[0], keys
		return
	}
	s.open = append(append([][]byte{}, keys...), s.seal)
	time.AfterFunc(s.grace, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seal = s.open[0]
	})
}

// keyed tells whether there is a key.
func (s *sealer) keyed() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seal != nil
}

func (s *sealer) sealFor(mac wire.MAC) func(netip.Addr) wire.Seal {
	return func(a netip.Addr) wire.Seal {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return wire.NewSeal(s.seal, s.node, a, mac)
	}
}

// sender gives the node that sealed m.
func (s *sealer) sender(m wire.Message) (wire.NodeID, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return m.Seal.Open(s.open, m.Address, m.From)
}
