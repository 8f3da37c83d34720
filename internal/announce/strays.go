// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"slices"
	"time"
)

// Strays has segments of open connections, which this node does not know, passed
// on to the node that knows them: who announced the address before.
// conntrack.Strays is one. It is used by one goroutine.
type Strays interface {
	// Pass sets the address, of the same family, of the node to which those for
	// addr go; the zero Addr for none.
	Pass(addr, node netip.Addr) error
	// Former is what Pass has set, this process or one before it.
	Former(addr netip.Addr) netip.Addr
	// Addresses are those for which it is set.
	Addresses() []netip.Addr
}

// Answer has clients come here, or not any more. Their open connections are known
// to the node that they come from.
func (e *entry) Answer(on bool) {
	if on {
		e.announced = 0
		e.loop.passStrays(e)
	}
	e.port.conn.Answer(e.addr, on)
}

// passStrays is called before e's address is answered for.
func (l *loop) passStrays(e *entry) {
	table := l.s.cfg.Strays
	if table == nil {
		return
	}
	if l.inherited[e.addr] {
		// This agent was restarted and takes up again what it did.
		delete(l.inherited, e.addr)
		if l.forwards(l.nodeOf(table.Former(e.addr))) {
			return
		}
	}
	former := e.machine.Holder().Name // it has just been heard
	if former == "" {
		former = e.former
	}
	var to netip.Addr
	if l.forwards(former) {
		to = l.internalIP(former, e.addr.Is6())
	}
	l.pass(e.addr, to)
}

func (l *loop) pass(addr, to netip.Addr) {
	delete(l.ending, addr)
	if l.s.cfg.Strays.Former(addr) == to {
		return
	}
	l.log.V(1).Info("Open connections of an address that this node does not know are passed on", "address", addr, "to", to)
	if err := l.s.cfg.Strays.Pass(addr, to); err != nil {
		l.log.Error(err, "Open connections of an address cannot be passed on to the node that announced it before; they break", "address", addr)
	}
}

// forwards tells whether another node's kernel is thought to forward.
func (l *loop) forwards(name string) bool {
	m, ok := l.view[name]
	return ok && name != l.s.cfg.Node && (m.Alive || m.HostAnswers)
}

// announced is told that another node of ours has announced an address. If this one
// answers for it too, connections have been opened there. If it does not, and is
// where that node's strays go, passing them on would go in a circle.
func (l *loop) announced(now time.Time, addr netip.Addr, name string) {
	table := l.s.cfg.Strays
	if table == nil {
		return
	}
	former := table.Former(addr)
	if l.answers(addr) {
		if to := l.internalIP(name, addr.Is6()); to.IsValid() && !former.IsValid() {
			l.pass(addr, to)
		}
		return
	}
	if _, ending := l.ending[addr]; !ending && former.IsValid() && l.nodeOf(former) == name {
		l.ending[addr] = now.Add(strayLinger)
	}
}

// strayLinger is for how long strays are passed on in a circle: there are clients
// that have not heard who announces the address now. conntrack.Strays bounds how
// often one goes round.
const strayLinger = 3 * time.Second

// endStrays ends the passing on in circles.
func (l *loop) endStrays(now time.Time) {
	for addr, end := range l.ending {
		if !now.Before(end) {
			l.pass(addr, netip.Addr{})
		}
	}
}

// forgetStrays ends the passing on to nodes that are gone, and of addresses that
// are no more.
func (l *loop) forgetStrays() {
	if l.s.cfg.Strays == nil {
		return
	}
	for _, addr := range l.s.cfg.Strays.Addresses() {
		result, listed := l.results[addr]
		if result.Announcer != l.s.cfg.Node {
			delete(l.inherited, addr)
		}
		m, known := l.view[l.nodeOf(l.s.cfg.Strays.Former(addr))]
		if !listed || !known || m.Gone() {
			l.pass(addr, netip.Addr{})
		}
	}
}

func (l *loop) answers(addr netip.Addr) bool {
	for _, p := range l.ports {
		if p.answers(addr) {
			return true
		}
	}
	return false
}

// internalIP gives a node's address of a family, and nodeOf the node that has one.
func (l *loop) internalIP(name string, six bool) netip.Addr {
	for _, n := range l.snap.Nodes {
		if n.Name != name {
			continue
		}
		if i := slices.IndexFunc(n.InternalIPs, func(a netip.Addr) bool { return a.Is6() == six }); i >= 0 {
			return n.InternalIPs[i]
		}
	}
	return netip.Addr{}
}

func (l *loop) nodeOf(ip netip.Addr) string {
	for _, n := range l.snap.Nodes {
		if slices.Contains(n.InternalIPs, ip) {
			return n.Name
		}
	}
	return ""
}
