// SPDX-License-Identifier: Apache-2.0

package announcetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/conntrack"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
)

// entry is the name under which this executable is an announcer.
const entry = "announcer"

func init() { reexec.Register(entry, agentMain) }

// Command is the state of the cluster for an announcer. It stands for the API
// server and the node's proxy.
type Command struct {
	Keys       [][]byte
	Addresses  []Address
	Nodes      []Node
	InSync     bool
	Interfaces []string      // of the only pool
	Preempt    time.Duration // of the only pool
	// LAN has memberlist's defaults used for membership, and KeyGrace, unless 0, is
	// members.Timing's. Only the first command's count, like Node's and Gossip's.
	LAN      bool
	KeyGrace time.Duration
	Node     string
	Gossip   netip.AddrPort
	Log      bool
}

// Address is announce.Address.
type Address struct {
	Addr  netip.Addr
	Local []string // nil: policy Cluster
	// Recorded is the node that the API server has as its announcer.
	Recorded string
}

// Node is announce.Node.
type Node struct {
	Name                                    string
	Excluded, Cordoned, Deleting, NoNetwork bool
	InternalIPs                             []netip.Addr
}

// Event is what an announcer says.
type Event struct {
	At time.Time
	// Report is set for a change of an address; its Node reported it.
	Report *announce.Report
	// Alive are the other nodes that are alive, for a change of membership.
	Alive []string
	Dead  []string
	// Deaf are the interfaces that receive nothing, for a change of these; else nil.
	Deaf []string
	Node string
	// Metrics are the announcer's counters, "name protocol" -> value, said after
	// each command but the first.
	Metrics map[string]float64
}

func (c *Command) snapshot() announce.Snapshot {
	pool := &announce.Pool{Pool: elect.Pool{Interfaces: c.Interfaces}, Kind: announce.L2, Preempt: c.Preempt}
	snap := announce.Snapshot{InSync: c.InSync}
	for _, a := range c.Addresses {
		out := announce.Address{Addr: a.Addr, Pool: pool, Recorded: a.Recorded}
		if a.Local != nil {
			out.Local = map[string]bool{}
			for _, n := range a.Local {
				out.Local[n] = true
			}
		}
		snap.Addresses = append(snap.Addresses, out)
	}
	for _, n := range c.Nodes {
		snap.Nodes = append(snap.Nodes, announce.Node{
			Name: n.Name, Excluded: n.Excluded, Cordoned: n.Cordoned, Deleting: n.Deleting, NoNetwork: n.NoNetwork, InternalIPs: n.InternalIPs,
		})
	}
	return snap
}

// agentMain runs one Speaker until its standard input ends or it is told to stop.
func agentMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := runAgent(ctx, stop); err != nil {
		fmt.Fprintln(os.Stderr, "announcer:", err)
		return 1
	}
	return 0
}

func runAgent(ctx context.Context, stop func()) error {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 16<<20)
	next := func() (c Command, ok bool, err error) {
		if !input.Scan() {
			return c, false, input.Err()
		}
		err = json.Unmarshal(input.Bytes(), &c)
		return c, err == nil, err
	}
	first, ok, err := next()
	if !ok {
		return err
	}
	if first.Log {
		ctx = logr.NewContext(ctx, funcr.New(func(_, args string) {
			fmt.Fprintln(os.Stderr, time.Now().Format("05.000"), first.Node, args)
		}, funcr.Options{Verbosity: 1}))
	}
	handover, err := conntrack.OpenHandover()
	if err != nil {
		return err
	}
	defer handover.Close()
	registry := prometheus.NewRegistry()
	say := sayer(first.Node)
	cfg := first.config(say, registry)
	cfg.Announcers = map[announce.Kind]announce.NewAnnouncer{
		announce.L2: l2.New(l2.Config{Handover: handover, Metrics: l2.NewMetrics(registry)}),
	}
	s, err := announce.New(cfg)
	if err != nil {
		return err
	}
	synced := false
	apply := func(c *Command) error {
		if err := s.SetKeys(c.Keys...); err != nil {
			return err
		}
		synced = synced || c.InSync
		snap := c.snapshot()
		snap.Starting = !synced
		s.Update(snap)
		return nil
	}
	if err := apply(&first); err != nil {
		return err
	}
	go func() {
		defer stop() // the parent is gone
		for {
			c, ok, err := next()
			if !ok || err != nil || apply(&c) != nil {
				return
			}
			say(Event{Metrics: answerCounters(registry)})
		}
	}()
	return s.Run(ctx)
}

// sayer writes a node's events to the standard output.
func sayer(node string) func(Event) {
	var mu sync.Mutex
	output := json.NewEncoder(os.Stdout)
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		e.At, e.Node = time.Now(), node
		_ = output.Encode(e) // the parent is gone
	}
}

// answerCounters returns the counters by protocol, "name protocol" -> value.
func answerCounters(registry *prometheus.Registry) map[string]float64 {
	out := map[string]float64{}
	families, err := registry.Gather()
	if err != nil {
		return out
	}
	for _, family := range families {
		for _, m := range family.Metric {
			if len(m.Label) == 1 && m.Label[0].GetName() == "protocol" {
				out[family.GetName()+" "+m.Label[0].GetValue()] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

// config has everything reported.
func (c *Command) config(say func(Event), registry *prometheus.Registry) announce.Config {
	cfg := announce.Config{
		Node: c.Node, Gossip: c.Gossip, Metrics: announce.NewMetrics(registry),
		Report: func(r announce.Report) { say(Event{Report: &r}) },
		Deaf:   func(interfaces []string) { say(Event{Deaf: append([]string{}, interfaces...)}) },
		Membership: func(view map[string]members.Member) {
			e := Event{Alive: []string{}}
			for name, m := range view {
				if m.Alive() {
					e.Alive = append(e.Alive, name)
				} else {
					e.Dead = append(e.Dead, name)
				}
			}
			say(e)
		},
	}
	cfg.Timing = members.DefaultTiming()
	if c.LAN {
		cfg.Timing = members.LANTiming()
	}
	if c.KeyGrace > 0 {
		cfg.Timing.KeyGrace = c.KeyGrace
	}
	return cfg
}
