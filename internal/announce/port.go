// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/l2/arp"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/ndp"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// portKey is an interface and a family. A renamed interface keeps its index; a
// changed MAC makes another port.
type portKey struct {
	index int
	mac   wire.MAC
	six   bool
}

// heard is a message and where it came in.
type heard struct {
	port *port
	wire.Message
}

// port is the machines of one family on one interface, and their socket.
type port struct {
	key    portKey
	name   string // of the interface
	conn   *wire.Conn
	groups *ndp.Groups // nil for IPv4
	stop   func()
	failed chan struct{} // closed when the socket has failed
	opened time.Time
	// Of the interface, to ask with.
	own     []netip.Addr
	subnets []netip.Prefix

	entries map[netip.Addr]*entry
	asked   map[netip.Addr]bool // what the filter lets questions through for
	claimed int                 // how many addresses it lets claims through for
	dirty   bool                // asked has to be set again
	again   time.Time           // the same, from then on, after an error; else zero
	shouted time.Time
	beats   map[string]*beat    // announcers that are asked now and then
	missing map[string]absence  // nodes that are alive but do not answer here
	pressed time.Time           // when one of them was last asked because it seemed to be back
	open    map[netip.Addr]bool // asked for in vain, and not heard since
	counted wire.Counters       // of conn, already in the metrics
}

// entry is one address on one port.
type entry struct {
	addr      netip.Addr
	port      *port
	machine   *claim.Machine
	elected   bool      // as of the last election
	former    string    // who was elected before this node
	since     time.Time // of elected
	quiet     bool      // clients are left with the former one
	back      time.Time // when the former one's agent was back, while quiet
	announced int       // how often, since it answers
	queued    time.Time // the deadline under which it is in the queue
	loop      *loop
}

// Probe, Announce and, in strays.go, Answer make an entry its machine's claim.Port.

// Probe asks, and where one of ours that is alive may have the address it does so
// by a question too.
func (e *entry) Probe(to wire.MAC) {
	e.note(e.port.conn.Probe(e.addr, to))
	if former, known := e.loop.view[e.former]; to.IsZero() && (!known || former.Alive) && e.loop.alive() > 0 {
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
	if rival := e.machine.Rival(); !rival.IsZero() {
		e.note(e.port.conn.Tell(e.addr, rival))
	}
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
		_ = p.conn.Question(a, asker) // the probe beside it tells an error
	}
}

// subnet tells whether a and b are in one of the interface's subnets.
func (p *port) subnet(a, b netip.Addr) bool {
	return slices.ContainsFunc(p.subnets, func(s netip.Prefix) bool { return s.Contains(a) && s.Contains(b) })
}

func (e *entry) note(err error) {
	if err != nil {
		e.loop.log.V(1).Info("Sending failed", "address", e.addr, "interface", e.port.name, "reason", err.Error())
	}
}

// openPort opens the socket and starts to receive into out.
func openPort(ctx context.Context, now time.Time, key portKey, name string, s *Speaker, out chan<- heard) (*port, error) {
	p := &port{
		key: key, name: name, failed: make(chan struct{}), opened: now,
		entries: map[netip.Addr]*entry{}, asked: map[netip.Addr]bool{}, claimed: -1,
		beats: map[string]*beat{}, missing: map[string]absence{}, open: map[netip.Addr]bool{},
	}
	cfg := wire.Config{Interface: key.index, MAC: key.mac, Protocol: arp.Protocol{}, Seal: s.sealer.hint(key.mac), Reply: s.sealer.answer(key.mac)}
	if key.six {
		cfg.Protocol = ndp.Protocol{}
		p.groups = &ndp.Groups{Interface: key.index}
	}
	cfg.Hear = func(m wire.Message) {
		select {
		case out <- heard{p, m}:
		default:
			s.cfg.Metrics.lost.Inc()
		}
	}
	conn, err := wire.Open(cfg)
	if err != nil {
		return nil, err
	}
	p.conn = conn
	ctx, cancel := context.WithCancel(ctx)
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

// answers tells whether this node answers for a here.
func (p *port) answers(a netip.Addr) bool {
	e := p.entries[a]
	return e != nil && e.machine.Answers()
}

// listen brings filter and groups in line: claims are heard about all addresses
// of the family, questions about those in asked.
func (p *port) listen(all []netip.Addr) error {
	asked := slices.Collect(maps.Keys(p.asked))
	var claims []netip.Addr
	for _, a := range all {
		if a.Is6() == p.key.six {
			claims = append(claims, a)
		}
	}
	p.dirty, p.again = false, time.Time{}
	var errs []error
	if p.groups != nil {
		errs = append(errs, p.groups.Set(asked))
	}
	errs = append(errs, p.conn.Listen(asked, claims))
	return errors.Join(errs...)
}
