// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"net/netip"
	"slices"
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
	if err := l.s.cfg.Strays.Pass(addr, to); err != nil {
		l.log.Error(err, "Open connections of an address cannot be passed on to the node that announced it before; they break", "address", addr)
	}
}

// forwards tells whether another node's kernel is thought to forward.
func (l *loop) forwards(name string) bool {
	m, ok := l.view[name]
	return ok && name != l.s.cfg.Node && (m.Alive || m.HostAnswers)
}

// forgetStrays ends the passing on for addresses that are announced elsewhere, so
// that no two nodes pass segments to each other, and to nodes that are gone.
func (l *loop) forgetStrays() {
	if l.s.cfg.Strays == nil || l.snap == nil {
		return
	}
	for _, addr := range l.s.cfg.Strays.Addresses() {
		l.forgetStray(addr)
	}
}

func (l *loop) forgetStray(addr netip.Addr) {
	table := l.s.cfg.Strays
	if table == nil || !table.Former(addr).IsValid() {
		return
	}
	ours := l.answers(addr)
	if l.inherited[addr] {
		ours = l.results[addr].Announcer == l.s.cfg.Node
	}
	m, known := l.view[l.nodeOf(table.Former(addr))]
	if !ours || !known || m.Gone() {
		delete(l.inherited, addr)
		l.pass(addr, netip.Addr{})
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
