// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/links"
)

// portKey is an interface and a family. A renamed interface keeps its index; a
// changed MAC makes another port.
type portKey struct {
	index int
	mac   wire.MAC
	six   bool
}

// conn is a socket of one family on one interface. *wire.Conn is one; see there.
type conn interface {
	Listen(asked, advertised []netip.Addr) error
	Answer(a netip.Addr, on bool)
	Probe(a netip.Addr, to wire.MAC) error
	Question(a, asker netip.Addr) error
	Announce(a netip.Addr) error
	Remind(a netip.Addr) error
	Tell(a netip.Addr, to wire.MAC) error
	Unread() bool
	Bound() bool
	Counters() wire.Counters
}

// port is the machines of one family on one interface, and their socket.
type port struct {
	key    portKey
	name   string // of the interface
	conn   conn
	groups *ndp.Groups // nil for IPv4
	stop   func()
	failed chan struct{} // closed when the socket has failed
	opened time.Time
	// received returns how many frames of any kind the interface has received; ok is
	// false where that is not known.
	received func() (n uint64, ok bool)
	// Of the interface, to ask with.
	own     []netip.Addr
	subnets []netip.Prefix

	entries     map[netip.Addr]*entry
	filter      filter
	peers       peers
	reannounced time.Time
	counted     wire.Counters // of conn, already in the metrics
}

// filter is what a port's socket lets through.
type filter struct {
	asked      map[netip.Addr]bool // questions about these
	advertised int                 // advertisements of so many addresses
	changed    bool                // asked has to be set again
	retry      time.Time           // the same, from then on, after an error; else zero
}

func (f *filter) due(now time.Time) bool {
	return f.changed || !f.retry.IsZero() && !now.Before(f.retry)
}

func newPort(now time.Time, key portKey, name string) *port {
	return &port{
		key: key, name: name, received: func() (uint64, bool) { return 0, false }, failed: make(chan struct{}), opened: now,
		entries: map[netip.Addr]*entry{}, filter: filter{asked: map[netip.Addr]bool{}, advertised: -1}, peers: newPeers(),
	}
}

// opener opens ports. What they hear goes to heard, and wake is called.
type opener struct {
	ctx     context.Context
	auth    *frameAuth
	metrics *Metrics
	wake    func()
	heard   chan<- heard
}

// open opens the socket and starts to receive.
func (o opener) open(now time.Time, key portKey, name string) (*port, error) {
	p := newPort(now, key, name)
	cfg := wire.Config{Interface: key.index, MAC: key.mac, Protocol: arp.Protocol{}, Seal: o.auth.hint(key.mac), Reply: o.auth.answer(key.mac)}
	if key.six {
		cfg.Protocol = ndp.Protocol{}
		p.groups = &ndp.Groups{Interface: key.index}
	}
	cfg.Hear = func(m wire.Message) {
		select {
		case o.heard <- heard{p, m}:
			o.wake()
		default:
			o.metrics.lost.Inc()
		}
	}
	conn, err := wire.Open(cfg)
	if err != nil {
		return nil, err
	}
	p.conn, p.received = conn, func() (uint64, bool) { return links.Received(key.index) }
	ctx, cancel := context.WithCancel(o.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(p.failed)
		if err := conn.Run(ctx); err != nil {
			logr.FromContextOrDiscard(ctx).Info("Receiving failed, will open the socket again", "interface", name, "reason", err.Error())
		}
	})
	p.stop = func() {
		cancel()
		wg.Wait()
		if p.groups != nil {
			p.groups.Close()
		}
	}
	return p, nil
}

func (p *port) protocol() string {
	if p.key.six {
		return ndp.Protocol{}.Name()
	}
	return arp.Protocol{}.Name()
}

// answers reports whether this node answers for a here.
func (p *port) answers(a netip.Addr) bool {
	e := p.entries[a]
	return e != nil && e.machine.Answers()
}

// question asks for an address as any host does. Switches that suppress ARP and
// NDP (EVPN, a bridge's neigh_suppress) keep probes and announcements to
// themselves, but pass this on, or answer it for the one that they have seen last.
func (p *port) question(a netip.Addr) {
	var asker netip.Addr
	for _, own := range p.own {
		switch {
		case own.Is4() != a.Is4():
		case !asker.IsValid(), asker.IsLinkLocalUnicast(), p.subnet(own, a):
			asker = own
		}
	}
	if asker.IsValid() && asker != a {
		_ = p.conn.Question(a, asker) // the probe sent with it reports an error
	}
}

// subnet reports whether a and b are in one of the interface's subnets.
func (p *port) subnet(a, b netip.Addr) bool {
	return slices.ContainsFunc(p.subnets, func(s netip.Prefix) bool { return s.Contains(a) && s.Contains(b) })
}

// listen brings filter and groups in line: advertisements are heard about advertised,
// which are of the family, questions about those in filter.asked. After an error it
// is due again in a while.
func (p *port) listen(now time.Time, advertised []netip.Addr) error {
	asked := make([]netip.Addr, 0, len(p.filter.asked))
	for a := range p.filter.asked {
		asked = append(asked, a)
	}
	var errs []error
	if p.groups != nil {
		errs = append(errs, p.groups.Set(asked))
	}
	errs = append(errs, p.conn.Listen(asked, advertised))
	p.filter.changed, p.filter.retry = false, time.Time{}
	err := errors.Join(errs...)
	if err != nil {
		p.filter.retry = now.Add(retryPort)
	}
	return err
}

// entry is one address on one port. It is its machine's claim.Port.
type entry struct {
	addr     netip.Addr
	port     *port
	machine  *claim.Machine
	cluster  *cluster
	handover *handover
	log      logr.Logger

	succession succession
	announced  int       // how often, since it answers
	queued     time.Time // the deadline under which it is in the queue
}

func newEntry(addr netip.Addr, p *port, timing claim.Timing, c *cluster, h *handover, log logr.Logger) *entry {
	e := &entry{addr: addr, port: p, cluster: c, handover: h, log: log}
	e.machine = claim.New(timing, e)
	return e
}

// Answer has clients come here, or no longer. Their open connections are known to the
// node that they come from.
func (e *entry) Answer(on bool) {
	if on {
		e.announced = 0
		former := e.machine.Holder().Name // it has just been heard
		if former == "" {
			former = e.succession.former
		}
		e.handover.start(e.cluster, e.addr, former)
	}
	e.port.conn.Answer(e.addr, on)
}

// Probe asks, and where one of ours that is alive may have the address it does so
// by a question too.
func (e *entry) Probe(to wire.MAC) {
	e.note(e.port.conn.Probe(e.addr, to))
	if former, known := e.cluster.desired.Members[e.succession.former]; to.IsZero() && (!known || former.Alive()) && e.cluster.anyAlive() {
		e.port.question(e.addr)
	}
}

// Announce tells everyone, and by a frame of its own the one that has the address
// or had it until now.
func (e *entry) Announce() {
	e.note(e.port.conn.Announce(e.addr))
	// At first, and again after the time for which Linux takes no other change.
	if e.announced++; e.announced == 1 || e.announced == 4 {
		e.note(e.port.conn.Remind(e.addr))
	}
	if other := e.machine.Contender(); !other.IsZero() {
		e.note(e.port.conn.Tell(e.addr, other))
	}
}

func (e *entry) note(err error) {
	if err != nil {
		e.log.V(1).Info("Sending failed", "address", e.addr, "interface", e.port.name, "reason", err.Error())
	}
}
