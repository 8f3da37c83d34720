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

	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

// Config is what a Speaker needs.
type Config struct {
	// Node is this node's name.
	Node string
	// Gossip is the node's own address, where the other agents reach it; port 0
	// is members.Port.
	Gossip netip.AddrPort
	// Announcers by the Kind of addresses that each announces. Addresses of another
	// Kind are announced by no node.
	Announcers map[Kind]NewAnnouncer
	// Report, which may be nil, is called for every change, from the
	// Speaker's goroutine, and must not block.
	Report func(Report)
	// Membership, which may be nil, is called for every change of the other nodes,
	// by name, like Report.
	Membership func(map[string]members.Member)
	// Deaf, which may be nil, is called like Report for every change of this node's
	// interfaces that receive nothing while other nodes hear each other there, by
	// name. This node announces nothing on them.
	Deaf func(interfaces []string)
	// Metrics to count in; nil for none.
	Metrics *Metrics
	// Timing of the membership; the zero value is the default.
	Timing members.Timing
}

// Validate returns what is missing or wrong.
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
	members *members.Members
	updated chan struct{} // wakes the loop

	mu       sync.Mutex
	snapshot *Snapshot // the latest; nil before the first
}

// New returns a Speaker that does nothing yet.
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
	if cfg.Deaf == nil {
		cfg.Deaf = func([]string) {}
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.Timing == (members.Timing{}) {
		cfg.Timing = members.DefaultTiming()
	}
	died := func(d members.Death) { cfg.Metrics.detection.Observe(d.Silence.Seconds()) }
	m, err := members.New(members.Config{Name: cfg.Node, Bind: cfg.Gossip, Timing: cfg.Timing}, died)
	if err != nil {
		return nil, err
	}
	return &Speaker{cfg: cfg, members: m, updated: make(chan struct{}, 1)}, nil
}

// Update replaces the snapshot. It does not block.
func (s *Speaker) Update(snap Snapshot) {
	s.mu.Lock()
	s.snapshot = &snap
	s.mu.Unlock()
	wake(s.updated)
	peers := make([]members.Peer, 0, len(snap.Nodes))
	for _, n := range snap.Nodes {
		peers = append(peers, members.Peer{Name: n.Name, Addresses: n.InternalIPs})
	}
	s.members.SetPeers(peers)
}

func (s *Speaker) latest() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshot
}

// SetKeys replaces the gossip keys, each of members.KeyLength bytes; the first
// encrypts. Nothing is announced before the first call.
func (s *Speaker) SetKeys(keys ...[]byte) error {
	if err := s.members.SetKeys(keys...); err != nil {
		return err
	}
	wake(s.updated)
	return nil
}

// SetIdentities replaces this node's key pair, whose public half it has published,
// and what the others have published, by node. Of two nodes that have, no third can
// speak for either. own may be nil.
func (s *Speaker) SetIdentities(own *members.Identity, public map[string][]byte) {
	s.members.SetIdentities(own, public)
}

// Run announces until ctx ends. Then it hands every address over, which takes
// until the successors are heard or the Announcers give up, and returns when
// everything it started has stopped. It may be called once.
func (s *Speaker) Run(ctx context.Context) error {
	log := logr.FromContextOrDiscard(ctx).WithName("announce")
	ctx = logr.NewContext(ctx, log)
	// The loop outlives ctx for the handover, membership and links the loop.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()

	l := newLoop(s.cfg, s.members, log)
	woken := make(chan struct{}, 1)
	for kind, announcer := range s.cfg.Announcers {
		l.announcers[kind] = announcer(Env{Context: inner, Node: s.cfg.Node, Members: s.members, Wake: func() { wake(woken) }})
	}
	interfaces := make(chan []links.Link)
	var wg sync.WaitGroup
	var membersErr error
	wg.Go(func() { _ = links.Watch(inner, interfaces) })
	wg.Go(func() {
		if membersErr = s.members.Run(inner); membersErr != nil {
			cancel()
		}
	})
	s.serve(ctx, inner, l, interfaces, woken)
	cancel()
	wg.Wait()
	return errors.Join(membersErr)
}

// serve drives l until ctx ends and every address has been handed over, or until
// inner ends.
func (s *Speaker) serve(ctx, inner context.Context, l *loop, interfaces <-chan []links.Link, woken <-chan struct{}) {
	defer func() { l.close(time.Now()) }()
	done := ctx.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(l.next(time.Now()))
		select {
		case <-inner.Done():
			return
		case <-done:
			done = nil
			l.leave()
		case <-s.updated:
			l.changed = true
		case l.links = <-interfaces:
			l.changed = true
		case <-s.members.Changed():
			l.changed = true
		case <-woken:
		case <-timer.C:
		}
		l.step(time.Now(), s.latest())
		if l.leaving && l.active() == 0 {
			return
		}
	}
}

// wake has the receiver of c run once more.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
