// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// settleTime is how long a new Speaker waits for its peers' gossip before it
// believes that those it has not heard are dead.
const settleTime = time.Second

// Config is what a Speaker needs.
type Config struct {
	// Node is this node's name.
	Node string
	// Gossip is the node's own address, where the other agents reach it; port 0
	// is members.Port.
	Gossip netip.AddrPort
	// Report, which may be nil, is told of every change. It is called from the
	// Speaker's goroutine and must not block.
	Report func(Report)
	// Membership, which may be nil, is told of every change of the other nodes,
	// by name. It is called like Report.
	Membership func(map[string]members.Member)
	// Strays, which may be nil, is told where the open connections of an address
	// are known that has come here from another node.
	Strays Strays
	// Metrics to count in; nil for none.
	Metrics *Metrics
	// Timing of the claims, and Members of the membership; zero values are the
	// defaults.
	Timing  *claim.Timing
	Members members.Timing
}

// Validate tells what is missing or wrong.
func (c *Config) Validate() error {
	m := members.Config{Name: c.Node, Bind: c.Gossip}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("speaker: %w", err)
	}
	return nil
}

// Speaker announces. Its methods are safe for concurrent use.
type Speaker struct {
	cfg     Config
	timing  claim.Timing
	members *members.Members
	sealer  *sealer

	mu       sync.Mutex
	snapshot *Snapshot     // the latest; nil before the first
	updated  chan struct{} // wakes the loop

	loop loop
}

// New gives a Speaker that does nothing yet.
func New(cfg Config) (*Speaker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Report == nil {
		cfg.Report = func(Report) {}
	}
	if cfg.Membership == nil {
		cfg.Membership = func(map[string]members.Member) {}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	timing := claim.DefaultTiming()
	if cfg.Timing != nil {
		timing = *cfg.Timing
	}
	if cfg.Members == (members.Timing{}) {
		cfg.Members = members.DefaultTiming()
	}
	s := &Speaker{
		cfg:     cfg,
		timing:  timing,
		updated: make(chan struct{}, 1),
		sealer:  newSealer(cfg.Node, cfg.Members.KeyGrace),
	}
	m, err := members.New(members.Config{Name: cfg.Node, Bind: cfg.Gossip, Timing: cfg.Members, Stamp: s.sealer.stamp}, s.died)
	if err != nil {
		return nil, err
	}
	s.members = m
	s.sealer.secrets = m.Secrets
	s.sealer.clock = func(node string) (uint32, bool) { return m.Clock(node, wire.StampUnit*time.Millisecond) }
	s.loop.init(s)
	return s, nil
}

func (s *Speaker) died(d members.Death) { s.cfg.Metrics.detection.Observe(d.Silence.Seconds()) }

// Update replaces the snapshot. It does not block.
func (s *Speaker) Update(snap Snapshot) {
	s.mu.Lock()
	s.snapshot = &snap
	s.mu.Unlock()
	select {
	case s.updated <- struct{}{}:
	default:
	}
	peers := make([]members.Peer, 0, len(snap.Nodes))
	for _, n := range snap.Nodes {
		peers = append(peers, members.Peer{Name: n.Name, Addresses: n.InternalIPs})
	}
	s.members.SetPeers(peers)
}

// SetKeys replaces the gossip keys, each of members.KeyLength bytes; the first
// encrypts. Nothing is announced before the first call.
func (s *Speaker) SetKeys(keys ...[]byte) error {
	if err := s.members.SetKeys(keys...); err != nil {
		return err
	}
	s.sealer.set(keys)
	select {
	case s.updated <- struct{}{}:
	default:
	}
	return nil
}

// SetIdentities gives the Speaker this node's key pair, whose public half it has
// published, and what the others have published, by node. Of two that have, nobody
// else can speak for either. own may be nil.
func (s *Speaker) SetIdentities(own *members.Identity, public map[string][]byte) {
	s.members.SetIdentities(own, public)
}

// Run announces until ctx ends. Then it hands every address over, which takes
// until the successors are heard or claim's Release has passed, and returns when
// everything it started has stopped.
func (s *Speaker) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("announce")
	ctx = logr.NewContext(ctx, log)
	// The loop outlives ctx for the hand-over, membership and links the loop.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	links := make(chan []link)
	var wg sync.WaitGroup
	var membersErr error
	wg.Go(func() { _ = watchLinks(inner, links) })
	wg.Go(func() {
		if membersErr = s.members.Run(inner); membersErr != nil {
			cancel()
		}
	})
	loopErr := s.loop.run(ctx, inner, links)
	cancel()
	wg.Wait()
	return errors.Join(loopErr, membersErr)
}

// judged gives the election's nodes. self is this node's own facts.
func judged(snap *Snapshot, view map[string]members.Member, self string, own facts) []elect.Node {
	out := make([]elect.Node, 0, len(snap.Nodes))
	for _, n := range snap.Nodes {
		e := elect.Node{
			Name: n.Name, Labels: n.Labels, Excluded: n.Excluded, Cordoned: n.Cordoned, Deleting: n.Deleting, NoNetwork: n.NoNetwork,
		}
		f, told := own, true
		e.Alive = true
		if n.Name != self {
			m := view[n.Name]
			e.Alive = m.Alive
			f, told = decodeFacts(m.Facts)
		}
		if told {
			e.Starting, e.InSync, e.Leaving = f.Starting, f.InSync, f.Leaving
			e.Interfaces = make([]elect.Interface, 0, len(f.Links))
			for _, l := range f.Links {
				e.Interfaces = append(e.Interfaces, l.Interface)
			}
		}
		out = append(out, e)
	}
	return out
}
