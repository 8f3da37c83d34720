// SPDX-License-Identifier: Apache-2.0

package announce

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/go-logr/logr"

	"github.com/causeway-lb/causeway/internal/announce/elect"
)

// reporter joins what Announcers report with the outcome of the elections, and
// finds out what has changed. Its inputs are take and elected.
type reporter struct {
	self    string
	metrics *Metrics
	log     logr.Logger

	raw       map[netip.Addr]Report // as the Announcers have them; none is Released
	published map[netip.Addr]Report // none is Released
	pending   map[netip.Addr]bool   // may differ from published

	// Of the last election.
	addresses map[netip.Addr]*Address
	nodes     []elect.Node
	results   map[netip.Addr]elect.Result
}

func newReporter(self string, metrics *Metrics, log logr.Logger) *reporter {
	return &reporter{self: self, metrics: metrics, log: log, raw: map[netip.Addr]Report{}, published: map[netip.Addr]Report{}, pending: map[netip.Addr]bool{}}
}

// take records an Announcer's report.
func (p *reporter) take(r Report) {
	p.pending[r.Address] = true
	if r.State == Released {
		delete(p.raw, r.Address)
	} else {
		p.raw[r.Address] = r
	}
}

// elected records the elections' outcome for the addresses of snap.
func (p *reporter) elected(snap *Snapshot, nodes []elect.Node, results map[netip.Addr]elect.Result) {
	p.nodes, p.results = nodes, results
	p.addresses = make(map[netip.Addr]*Address, len(snap.Addresses))
	for i := range snap.Addresses {
		a := &snap.Addresses[i]
		p.addresses[a.Addr] = a
		p.pending[a.Addr] = true
	}
	for addr := range p.published {
		p.pending[addr] = true // some may not be listed any longer
	}
}

// changes returns the reports that differ from those of the call before.
func (p *reporter) changes() []Report {
	if len(p.pending) == 0 {
		return nil
	}
	var out []Report
	for addr := range p.pending {
		r := p.about(addr)
		old, ok := p.published[addr]
		if !ok {
			old = Report{Address: addr}
		}
		if r == old {
			continue
		}
		if r.State == Released {
			delete(p.published, addr)
		} else {
			p.published[addr] = r
		}
		p.log.V(1).Info("Address reported", "address", addr, "state", r.State.String(), "interface", r.Interface, "reason", r.Reason)
		p.moved(old, r)
		out = append(out, r)
	}
	clear(p.pending)
	announced, conflicts := 0, 0
	for _, r := range p.published {
		if r.State == Announced {
			announced++
		}
		if !r.ConflictingHost.IsZero() {
			conflicts++
		}
	}
	p.metrics.announced.Set(float64(announced))
	p.metrics.conflicts.Set(float64(conflicts))
	return out
}

func (p *reporter) moved(old, r Report) {
	switch {
	case r.State == Announced && old.State != Announced:
		p.metrics.moves.WithLabelValues("in").Inc()
		p.log.Info("Announcing address", "address", r.Address, "interface", r.Interface)
	case old.State == Announced && r.State != Announced:
		p.metrics.moves.WithLabelValues("out").Inc()
		p.log.Info("Stopped announcing address", "address", r.Address, "interface", old.Interface)
	}
}

// about returns what this node has to say about addr now.
func (p *reporter) about(addr netip.Addr) Report {
	r, ok := p.raw[addr]
	if !ok {
		r = Report{Address: addr}
	}
	listed, announcer := p.addresses[addr], p.results[addr].Announcer
	if old := p.published[addr]; r.State == Announced && old.State == Announced && old.Interface == r.Interface {
		r.Since = old.Since
	}
	switch {
	case listed == nil:
	case r.State == Announced && announcer == p.self:
		r.Reason = p.despite(listed)
	case r.State == Released && announcer == "" && p.speaks(addr):
		r.State, r.Reason = NoEligibleNode, p.reasons(listed)
		if _, elected := p.results[addr]; !elected {
			r.Reason = fmt.Sprintf("its pool is announced by %q, which this version of the agent does not know", listed.Pool.Kind)
		}
	}
	return r
}

// speaks reports whether this node is the one to say that no node may announce
// addr: the best by score of those that are alive.
func (p *reporter) speaks(addr netip.Addr) bool {
	for _, n := range p.nodes {
		if n.Alive && !n.Leaving && elect.Outranks(addr, n.Name, p.self) {
			return false
		}
	}
	return true
}

// maxReasons bounds a text that ends up in a condition.
const maxReasons = 10

// despite says what speaks against this node, which announces a because no other
// can do so better; "" for nothing.
func (p *reporter) despite(a *Address) string {
	i := slices.IndexFunc(p.nodes, func(n elect.Node) bool { return n.Name == p.self })
	if i < 0 || elect.Graded(&p.nodes[i]) == 0 {
		return ""
	}
	out := grade(&p.nodes[i]) + ", but no other node can do better"
	if others := p.reasons(a); others != "" {
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
func (p *reporter) reasons(a *Address) string {
	if len(p.nodes) == 0 {
		return "there are no nodes"
	}
	e := a.elected()
	by := map[string][]string{}
	for i := range p.nodes {
		reason := string(elect.Eligibility(&p.nodes[i], &e))
		if reason == "" {
			if p.nodes[i].Name == p.self {
				continue
			}
			reason = grade(&p.nodes[i])
		}
		by[reason] = append(by[reason], p.nodes[i].Name)
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
