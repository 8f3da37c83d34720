// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/claim"
)

// report tells what has changed of the touched addresses.
func (l *loop) report(now time.Time) {
	if len(l.touched) == 0 {
		return
	}
	listed := map[netip.Addr]*Address{}
	if l.snap != nil {
		for i := range l.snap.Addresses {
			listed[l.snap.Addresses[i].Addr] = &l.snap.Addresses[i]
		}
	}
	for addr := range l.touched {
		r := l.about(now, addr, listed[addr])
		old, ok := l.reported[addr]
		if !ok {
			old = Report{Address: addr}
		}
		if r == old {
			continue
		}
		if r.State == Released {
			delete(l.reported, addr)
		} else {
			l.reported[addr] = r
		}
		l.log.V(1).Info("Address reported", "address", addr, "state", r.State.String(), "interface", r.Interface, "reason", r.Reason)
		l.move(old, r)
		l.s.cfg.Report(r)
	}
	clear(l.touched)
	announced, conflicts := 0, 0
	for _, r := range l.reported {
		if r.State == Announced {
			announced++
		}
		if !r.Stranger.IsZero() {
			conflicts++
		}
	}
	l.s.cfg.Metrics.announced.Set(float64(announced))
	l.s.cfg.Metrics.conflicts.Set(float64(conflicts))
}

func (l *loop) move(old, r Report) {
	switch {
	case r.State == Announced && old.State != Announced:
		l.s.cfg.Metrics.moves.WithLabelValues("in").Inc()
		l.log.Info("Announcing address", "address", r.Address, "interface", r.Interface)
	case old.State == Announced && r.State != Announced:
		l.s.cfg.Metrics.moves.WithLabelValues("out").Inc()
		l.log.Info("Stopped announcing address", "address", r.Address, "interface", old.Interface)
	}
}

// about gives what this node has to say about addr now.
func (l *loop) about(now time.Time, addr netip.Addr, listed *Address) Report {
	r := Report{Address: addr}
	var entries []*entry
	for _, p := range l.ports {
		if e := p.entries[addr]; e != nil {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(a.port.name, b.port.name) })
	for _, e := range entries {
		state, since := e.machine.State()
		conflict := e.machine.Conflict(now)
		switch {
		case e.machine.Answers() && r.State != Announced:
			r.State, r.Interface = Announced, e.port.name
			r.Stranger, r.StrangerNode, r.StrangerInterface = conflict.MAC, conflict.Node, conflict.Interface
			if gone := l.results[addr].Announcer; gone != l.s.cfg.Node {
				if _, missing := e.port.missing[gone]; missing {
					r.Silent = gone
				}
			}
			r.Since = since
			if old := l.reported[addr]; old.State == Announced && old.Interface == r.Interface {
				r.Since = old.Since
			}
		case state == claim.Conflicting && r.State == Released:
			r.State, r.Interface = Conflicted, e.port.name
			r.Stranger, r.StrangerNode, r.StrangerInterface = conflict.MAC, conflict.Node, conflict.Interface
		}
	}
	if r.State == Announced && listed != nil && l.results[addr].Announcer == l.s.cfg.Node {
		r.Reason = l.despite(listed)
	}
	if r.State == Released && listed != nil && l.settled && l.results[addr].Announcer == "" && l.spokesman(addr) {
		r.State, r.Reason = Nobody, l.reasons(listed)
	}
	return r
}

// spokesman tells whether this node is the one to say that nobody may announce
// addr: the best by score of those that are alive.
func (l *loop) spokesman(addr netip.Addr) bool {
	for _, n := range l.nodes {
		if n.Alive && !n.Leaving && elect.Outranks(addr, n.Name, l.s.cfg.Node) {
			return false
		}
	}
	return true
}

// maxReasons bounds a text that ends up in a condition.
const maxReasons = 10

// despite says what speaks against this node, which announces a because no other
// can do so better; "" for nothing.
func (l *loop) despite(a *Address) string {
	i := slices.IndexFunc(l.nodes, func(n elect.Node) bool { return n.Name == l.s.cfg.Node })
	if i < 0 || elect.Graded(&l.nodes[i]) == 0 {
		return ""
	}
	out := grade(&l.nodes[i]) + ", but no other node can do better"
	if others := l.reasons(a); others != "" {
		out += ". " + others
	}
	return out
}

// grade names what speaks against a node that may announce.
func grade(n *elect.Node) string {
	var out []string
	for _, r := range elect.Graded(n).Reasons() {
		out = append(out, string(r))
	}
	return strings.Join(out, " and ")
}

// reasons says of every other node why it does not announce a, and of this one
// if it may not.
func (l *loop) reasons(a *Address) string {
	if len(l.nodes) == 0 {
		return "there are no nodes"
	}
	e := elect.Address{Addr: a.Addr, Pool: &a.Pool.Pool, Local: a.Local}
	by := map[string][]string{}
	for i := range l.nodes {
		reason := string(elect.Judge(&l.nodes[i], &e))
		if reason == "" {
			if l.nodes[i].Name == l.s.cfg.Node {
				continue
			}
			reason = grade(&l.nodes[i])
		}
		by[reason] = append(by[reason], l.nodes[i].Name)
	}
	var out []string
	for reason, nodes := range by {
		slices.Sort(nodes)
		if more := len(nodes) - maxReasons; more > 0 {
			nodes = append(nodes[:maxReasons], "and others")
		}
		out = append(out, strings.Join(nodes, ", ")+": "+reason)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}
