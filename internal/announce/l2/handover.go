// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"time"

	"github.com/go-logr/logr"
)

// Handover has segments of open connections, which this node does not know, passed
// on to the node that knows them: the one that announced the address before.
// conntrack.Handover is one. It is used by one goroutine.
type Handover interface {
	// Pass sets the address, of the same family, of the node to which those for
	// addr go; the zero Addr for none.
	Pass(addr, node netip.Addr) error
	// Former returns what Pass has set, this process or one before it.
	Former(addr netip.Addr) netip.Addr
	// Addresses returns those for which it is set.
	Addresses() []netip.Addr
}

// loopTime is for how long segments are passed on in a circle: there are clients
// that have not heard which node announces the address now. conntrack.Handover bounds
// how often a segment goes round.
const loopTime = 3 * time.Second

// handover decides where the segments of open connections go when an address moves.
type handover struct {
	table Handover // nil: nowhere
	log   logr.Logger

	inherited map[netip.Addr]bool      // are passed on as an agent before this one left it
	ending    map[netip.Addr]time.Time // when passing them on ends
}

func newHandover(table Handover, log logr.Logger) *handover {
	h := &handover{table: table, log: log, inherited: map[netip.Addr]bool{}, ending: map[netip.Addr]time.Time{}}
	if table != nil {
		for _, addr := range table.Addresses() {
			h.inherited[addr] = true
		}
	}
	return h
}

// start is called before this node answers for an address that former announced; ""
// if no node is known to have.
func (h *handover) start(c *cluster, addr netip.Addr, former string) {
	if h.table == nil {
		return
	}
	if h.inherited[addr] {
		// This agent was restarted and takes up again what it did.
		delete(h.inherited, addr)
		if c.forwards(c.nodeOf(h.table.Former(addr))) {
			delete(h.ending, addr) // if it is a circle, the other node ends it now
			return
		}
	}
	var to netip.Addr
	if c.forwards(former) {
		to = c.internalIP(former, addr.Is6())
	}
	h.pass(addr, to)
}

func (h *handover) pass(addr, to netip.Addr) {
	delete(h.ending, addr)
	if h.table.Former(addr) == to {
		return
	}
	h.log.V(1).Info("Open connections of an address that this node does not know are passed on", "address", addr, "to", to)
	if err := h.table.Pass(addr, to); err != nil {
		h.log.Error(err, "Open connections of an address cannot be passed on to the node that announced it before; they break", "address", addr)
	}
}

// announced records that another node of ours has announced an address. If this one
// answers for it too, connections have been opened there. If it does not, and is
// where that node's segments go, passing them on would go in a circle.
func (h *handover) announced(now time.Time, c *cluster, addr netip.Addr, node string, answering bool) {
	if h.table == nil {
		return
	}
	former := h.table.Former(addr)
	if answering {
		if to := c.internalIP(node, addr.Is6()); to.IsValid() && !former.IsValid() {
			h.pass(addr, to)
		}
		return
	}
	if _, ending := h.ending[addr]; !ending && former.IsValid() && c.nodeOf(former) == node {
		h.ending[addr] = now.Add(loopTime)
	}
}

// expire ends the passing on in circles.
func (h *handover) expire(now time.Time) {
	for addr, end := range h.ending {
		if !now.Before(end) {
			h.pass(addr, netip.Addr{})
		}
	}
}

// prune ends the passing on to nodes that are gone, and of addresses that are no
// longer announced.
func (h *handover) prune(c *cluster) {
	if h.table == nil {
		return
	}
	for _, addr := range h.table.Addresses() {
		if c.result(addr).Announcer != c.self {
			delete(h.inherited, addr)
		}
		m, known := c.desired.Members[c.nodeOf(h.table.Former(addr))]
		if c.listed[addr] == nil || !known || m.Gone() {
			h.pass(addr, netip.Addr{})
		}
	}
}
