// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/conntrack"
)

// snapshotDelay is how long changes of the Store are gathered before the announcer's
// snapshot is computed again.
const snapshotDelay = 5 * time.Millisecond

// AnnouncerConfig is how LoadBalancer addresses are announced. The zero value is valid.
type AnnouncerConfig struct {
	// GossipPort is the UDP and TCP port of the agents' gossip, the same on all
	// nodes; 0 is members.Port.
	GossipPort uint16
	// Namespace of the Secret with the gossip key; empty: the environment
	// variable POD_NAMESPACE, else causeway-system.
	Namespace string
	// KeepDeadNodes has the proxy use endpoints on nodes that the agents find dead
	// until the API server knows.
	KeepDeadNodes bool
	// IgnoreExcludeLabel sets the pools' field of that name for all pools. It must be
	// the same on all nodes.
	IgnoreExcludeLabel bool
}

// Announcer is the Part that announces LoadBalancer addresses.
//
//	Store, Syncer -> announceSnapshot -> announce.Speaker -> announceStatus -> API
//	Secret        -> keys ------------------^      |
//	AgentKeys     -> identities ------------^      |
//	                                  membership   +----> Env.SetDeadNodes
func Announcer(cfg AnnouncerConfig) Part {
	cfg.GossipPort = cmp.Or(cfg.GossipPort, members.Port)
	cfg.Namespace = cmp.Or(cfg.Namespace, os.Getenv("POD_NAMESPACE"), v1alpha1.SystemNamespace)
	return Part{Name: "announcer", Run: func(ctx context.Context, env Env) error {
		a := &announcer{
			cfg: cfg, env: env,
			metrics: announce.NewMetrics(env.Registry), l2Metrics: l2.NewMetrics(env.Registry),
			changed: make(chan struct{}, 1),
			keys:    make(chan [][]byte, 1),

			identities: newIdentities(env),
		}
		a.status = newAnnounceStatus(env)
		a.snapshots.ignoreExcludeLabel = cfg.IgnoreExcludeLabel
		return a.run(ctx)
	}}
}

// announcer runs one Speaker after the other: a new one when this node's own
// address changes.
type announcer struct {
	cfg       AnnouncerConfig
	env       Env
	metrics   *announce.Metrics
	l2Metrics *l2.Metrics
	status    *announceStatus
	changed   chan struct{}
	keys      chan [][]byte // the latest

	identities *identities

	apartNodes []string // as last reported

	snapshots snapshotter
	key       [][]byte // the last received
}

func (a *announcer) run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	a.env.Store.Listen(func(e Event) {
		if e.Kind == KindLoadBalancerAddress {
			a.status.changed(e.Name.Name)
		}
		wakeUp(a.changed)
	})
	wg.Go(func() { watchGossipKeys(ctx, a.env.Kube, a.cfg.Namespace, a.keys) })
	// Reports of the last moment, from handing over, are still written.
	statusCtx, stopStatus := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { a.status.run(statusCtx) })
	defer stopStatus()

	err := a.env.Store.WaitListed(ctx, KindService, KindEndpointSlice, KindNode, KindLoadBalancerAddress, KindLoadBalancerPool)
	if err == nil {
		// The other agents should know this one's key before it sends anything.
		ready := make(chan struct{})
		wg.Go(func() { a.identities.run(ctx, ready) })
		wg.Go(func() { a.watchBound(ctx) })
		select {
		case <-ready:
		case <-time.After(publishWait):
		case <-ctx.Done():
		}
	}
	for err == nil && ctx.Err() == nil {
		var self netip.Addr
		if self, err = a.waitForAddress(ctx); err == nil {
			err = a.speak(ctx, self)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// waitForAddress returns this node's InternalIP, at which the other agents reach it.
func (a *announcer) waitForAddress(ctx context.Context) (netip.Addr, error) {
	for logged := false; ; logged = true {
		if self := a.address(); self.IsValid() {
			return self, nil
		}
		if !logged {
			logr.FromContextOrDiscard(ctx).Info("Waiting for this node's InternalIP; nothing is announced before", "node", a.env.NodeName)
		}
		select {
		case <-a.changed:
		case <-ctx.Done():
			return netip.Addr{}, ctx.Err()
		}
	}
}

func (a *announcer) address() netip.Addr {
	if ips := internalIPs(a.env.Store.Node(a.env.NodeName)); len(ips) > 0 {
		return ips[0]
	}
	return netip.Addr{}
}

// speak runs a Speaker with the address self until ctx ends or the node's address
// changes.
func (a *announcer) speak(ctx context.Context, self netip.Addr) error {
	layer2 := l2.Config{Metrics: a.l2Metrics}
	if handover, err := conntrack.OpenHandover(); err != nil {
		logr.FromContextOrDiscard(ctx).Error(err, "Open connections will break when their address moves to another node; does the kernel have nf_tables with dup (CONFIG_NFT_DUP_IPV4 and _IPV6)?")
	} else {
		defer handover.Close()
		layer2.Handover = handover
	}
	s, err := announce.New(announce.Config{
		Announcers: map[announce.Kind]announce.NewAnnouncer{announce.L2: l2.New(layer2)},
		Node:       a.env.NodeName,
		Gossip:     netip.AddrPortFrom(self, a.cfg.GossipPort),
		Report:     a.status.report,
		Membership: a.membership,
		Deaf:       a.deaf,
		Metrics:    a.metrics,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel()
		a.feed(ctx, s, self)
	})
	return s.Run(ctx)
}

// feed passes the Speaker its inputs until ctx ends or the node's address is no longer
// self.
func (a *announcer) feed(ctx context.Context, s *announce.Speaker, self netip.Addr) {
	log := logr.FromContextOrDiscard(ctx)
	synced := a.env.Syncer.Watch()
	setKeys := func() {
		if err := s.SetKeys(a.key...); err != nil {
			log.Error(err, "The gossip key cannot be used; the controller writes a good one when the Secret is deleted", "secret", v1alpha1.GossipSecret)
		}
	}
	s.SetIdentities(a.identities.current())
	if a.key != nil {
		setKeys()
	}
	due := time.NewTimer(0)
	defer due.Stop()
	a.snapshots.forget()
	for {
		select {
		case <-ctx.Done():
			return
		case a.key = <-a.keys:
			setKeys()
			continue
		case <-a.identities.changed:
			s.SetIdentities(a.identities.current())
			continue
		case <-a.changed:
			due.Reset(snapshotDelay)
			continue
		case <-synced:
			due.Reset(snapshotDelay)
			continue
		case <-due.C:
		}
		if now := a.address(); now.IsValid() && now != self {
			log.Info("This node's InternalIP has changed", "from", self, "to", now)
			return
		}
		status := a.env.Syncer.Status()
		inSync, again := usable(status, time.Now())
		if again > 0 {
			due.Reset(again)
		}
		if snap, changed := a.snapshots.make(a.env.Store, !status.Started, inSync); changed {
			s.Update(snap)
		}
	}
}

// membership passes on which nodes their peers consider dead.
func (a *announcer) membership(view map[string]members.Member) {
	a.status.members(view)
	a.apart(view)
	if a.cfg.KeepDeadNodes || a.env.SetDeadNodes == nil {
		return
	}
	a.env.SetDeadNodes(namesOf(view, func(m members.Member) bool { return m.State == members.Unreachable }))
}

// namesOf returns the names of the members that match, in order.
func namesOf(view map[string]members.Member, match func(members.Member) bool) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(view)) {
		if match(view[name]) {
			names = append(names, name)
		}
	}
	return names
}

// apart reports nodes with which this one shares no address family.
func (a *announcer) apart(view map[string]members.Member) {
	names := namesOf(view, func(m members.Member) bool { return m.Apart })
	if slices.Equal(names, a.apartNodes) {
		return
	}
	a.apartNodes = names
	if len(names) == 0 {
		return
	}
	some := names[:min(len(names), 10)]
	a.nodeEvent("NoSharedFamily", "%d nodes have no InternalIP of a family of which %s has one, so the agents do not hear each other and may announce the same addresses: give all nodes an address of one family (%s)",
		len(names), a.env.NodeName, strings.Join(some, ", "))
}

// deaf reports this node's interfaces that receive nothing.
func (a *announcer) deaf(interfaces []string) {
	if len(interfaces) > 0 {
		a.nodeEvent("NothingReceived", "%s announces no addresses on %s: it receives nothing there, while other nodes hear each other; check its cable, its switch port, and filters on the way",
			a.env.NodeName, strings.Join(interfaces, ", "))
	}
}

// nodeEvent records a warning on this node.
func (a *announcer) nodeEvent(reason, note string, args ...any) {
	if a.env.Recorder == nil {
		return
	}
	a.env.Recorder.Eventf(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: a.env.NodeName, UID: types.UID(a.env.NodeName)}, nil, corev1.EventTypeWarning, reason, "Announce", note, args...)
}

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// describe names the conflicting host, or the node that has the address without
// announcing it.
func describe(r announce.Report, node string) string {
	if r.ConflictingNode == "" {
		return fmt.Sprintf("host %v on the LAN of %s (%s) uses the address too", r.ConflictingHost, node, r.Interface)
	}
	return fmt.Sprintf("node %s answers for the address on %s (%v) though its agent does not announce it: on that node, look with \"ip addr show to %v\", also in its Pods, and remove what another load balancer (kube-vip, keepalived) has left",
		r.ConflictingNode, r.ConflictingInterface, r.ConflictingHost, r.Address)
}
