// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"time"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
)

// reports has the addresses that are to be reported.
type reports map[netip.Addr]bool

func (r reports) enqueue(addr netip.Addr) { r[addr] = true }

// take returns the reports of the addresses that were enqueued since the last call.
func (r reports) take(now time.Time, c *cluster, ports map[portKey]*port) []announce.Report {
	if len(r) == 0 {
		return nil
	}
	out := make([]announce.Report, 0, len(r))
	for addr := range r {
		out = append(out, about(now, addr, c, ports))
	}
	clear(r)
	return out
}

// about returns the state of addr on this node. Of several interfaces the first by
// name counts on which it is announced, else on which there is a conflict.
func about(now time.Time, addr netip.Addr, c *cluster, ports map[portKey]*port) announce.Report {
	out := announce.Report{Address: addr}
	for _, p := range ports {
		e := p.entries[addr]
		if e == nil {
			continue
		}
		r := announce.Report{Address: addr, Interface: p.name}
		state, since := e.machine.State()
		switch {
		case e.machine.Answers():
			r.State, r.Since = announce.Announced, since
			if elected := c.result(addr).Announcer; elected != c.self {
				if _, missing := p.peers.unreachable[elected]; missing {
					r.Unreachable = elected
				}
			}
		case state == claim.Conflicting:
			r.State = announce.Conflicted
		default:
			continue
		}
		if better := r.State == announce.Announced && out.State != announce.Announced; better || out.State == announce.Released || r.State == out.State && r.Interface < out.Interface {
			conflict := e.machine.Conflict(now)
			r.ConflictingHost, r.ConflictingNode, r.ConflictingInterface = conflict.MAC, conflict.Node, conflict.Interface
			out = r
		}
	}
	return out
}
