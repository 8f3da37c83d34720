// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
)

// heard is a message and where it came in.
type heard struct {
	port *port
	wire.Message
}

// receive takes what has been heard, as much as there may be at most.
func (a *Announcer) receive(now time.Time) {
	for range heardBacklog {
		select {
		case h := <-a.heard:
			a.hear(now, h)
		default:
			return
		}
	}
}

// hear returns a message to the parts that it is about.
func (a *Announcer) hear(now time.Time, h heard) {
	p := h.port
	if a.ports.all[p.key] != p {
		return // it was closed meanwhile
	}
	from, ok := a.peer(h)
	if !ok {
		return
	}
	_, missing := p.peers.unreachable[from.Name]
	kind := claim.Probe
	switch h.Kind {
	case wire.Advertisement:
		kind = claim.Advertisement
		a.decisions.due = a.liveness.advertised(now, a.ports.all, p, from, h.Message) || a.decisions.due
		if from.Suspect {
			// It may have announced the same addresses as we, out of hearing.
			a.reannounce(now, p.key.index)
		}
		if missing && from.Hint {
			a.liveness.confirm(now, p, h.Message)
		}
	case wire.Probe:
		a.liveness.probed(now, p, from.Name, h.Address)
	}
	if e := p.entries[h.Address]; e != nil {
		before, _ := e.machine.State()
		e.machine.Hear(now, kind, from)
		a.after(now, e, before)
	}
	if h.Kind == wire.Advertisement && from.Name != "" && h.To != p.key.mac { // and has not just answered us
		a.handover.announced(now, a.cluster, h.Address, from.Name, a.answers(h.Address))
	}
}

// peer returns the sender of a message; ok is false for this node itself, and for
// messages that are to be ignored.
func (a *Announcer) peer(h heard) (from claim.Peer, ok bool) {
	c := a.cluster
	name, level := a.auth.sender(h.Message, h.port.key.mac, c.bondOf)
	if level == replayed {
		a.metrics.replayed.Inc()
		return from, false
	}
	from = claim.Peer{Name: name, MAC: h.From, Hint: level == unverified}
	if name == "" {
		host := c.owners[h.From]
		from.Host, from.HostInterface = host.node, host.iface
		if dead, ok := c.desired.Members[host.node]; ok && !dead.Alive() {
			e := h.port.entries[h.Address]
			from.HostDead, from.Cached = true, dead.Gone() || e != nil && e.succession.former == host.node
		}
		return from, from.Host != c.self // ours, through another interface on the same link
	}
	member, known := c.desired.Members[name]
	_, missing := h.port.peers.unreachable[name]
	from.Alive, from.Suspect = member.Alive(), missing || known && !member.Alive()
	// Of two nodes of one grade preemption decides; a worse one has to go.
	r := c.result(h.Address)
	from.Eligible = r.Rank(name) >= 0 && r.Grade(name) <= r.Grade(c.self)
	from.Outranks = elect.Outranks(h.Address, name, c.self)
	return from, name != c.self
}

// reannounce announces everything on an interface again, in both families, once a
// second at most.
func (a *Announcer) reannounce(now time.Time, index int) {
	for _, p := range a.ports.all {
		if p.key.index != index || now.Sub(p.reannounced) <= time.Second {
			continue
		}
		p.reannounced = now
		for _, e := range p.entries {
			e.machine.Reannounce()
		}
	}
}

func (a *Announcer) answers(addr netip.Addr) bool {
	for _, p := range a.ports.all {
		if p.answers(addr) {
			return true
		}
	}
	return false
}
