// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// String is one line, for example "default/web port http: missing endpoint
// 10.244.1.2:8080 of ClusterIP 10.96.0.10:80/TCP (nft element …)".
func (d Difference) String() string {
	s := d.Kind.String() + " " + d.What
	if d.Port != "" {
		s = "port " + d.Port + ": " + s
	}
	if d.Service != (types.NamespacedName{}) {
		s = strings.TrimSuffix(d.Service.String()+" "+s, " ")
	}
	if d.Rule != "" {
		s += " (" + d.Rule + ")"
	}
	return s
}

// owned is a frontend with the Service that has it.
type owned struct {
	service types.NamespacedName
	*model.Frontend
}

func (o owned) port() string {
	return cmp.Or(o.PortName, fmt.Sprintf("%d/%s", o.AffinityGroup().Port, o.Protocol))
}

func (o owned) String() string { return o.Kind.String() + " " + o.Key.String() }

// owners are the frontends of all Services by what is dialled.
func owners(d model.Desired) map[model.Key]owned {
	all := map[model.Key]owned{}
	for name, svc := range d.Services {
		for i := range svc.Frontends {
			all[svc.Frontends[i].Key] = owned{name, &svc.Frontends[i]}
		}
	}
	return all
}

// Diff returns how s differs from what its mode is to reach, in the order of the
// Services' names; what concerns none comes first.
func Diff(d model.Desired, s State) []Difference {
	c := comparison{out: slices.Clone(s.Faults), owners: owners(d)}
	want := Expected(d, s.Mode)
	for key, w := range want.Frontends {
		c.owner = c.owners[key]
		c.what = c.owners[key].String()
		if have := s.Frontends[key]; have != nil {
			c.frontend(w, have)
		} else {
			c.add(Missing, c.what, "")
		}
	}
	c.owner = owned{}
	for key, have := range s.Frontends {
		if want.Frontends[key] == nil {
			c.add(Extra, "frontend "+key.String(), cmp.Or(have.Inside, have.Outside, &View{}).Rule)
		}
	}
	c.addresses(want, s)
	if len(d.Node.PodInterfaces) == 0 {
		c.ranges("Pods of this node", want.LocalPods, s.LocalPods)
	}
	c.ranges("addresses of NodePorts", want.NodePorts, s.NodePorts)
	for l := range want.Listeners {
		if _, ok := s.Listeners[l]; !ok {
			c.add(Missing, l.String(), "")
		}
	}
	for name, why := range s.Rejected {
		c.out = append(c.out, Difference{Service: name, Kind: Other, What: "state: the kernel rejects changes of the Service: " + why})
	}
	slices.SortFunc(c.out, func(a, b Difference) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(c.out)
}

// String is "userspace listener for IPv4 TCP from outside".
func (l Listener) String() string {
	side := "inside"
	if l.Outside {
		side = "outside"
	}
	return fmt.Sprintf("userspace listener for %s %s from %s", l.Family, l.Protocol, side)
}

// comparison collects differences, of one frontend at a time.
type comparison struct {
	out    []Difference
	owners map[model.Key]owned
	owner  owned
	what   string
}

func (c *comparison) add(k DifferenceKind, what, rule string) {
	d := Difference{Service: c.owner.service, Kind: k, What: what, Rule: rule}
	if c.owner.Frontend != nil {
		d.Port = c.owner.port()
	}
	c.out = append(c.out, d)
}

func (c *comparison) frontend(want, have *Frontend) {
	if have.Inside == nil {
		c.add(Missing, "view from inside of "+c.what, "")
		return
	}
	c.view("", want.Inside, have.Inside)
	switch {
	case want.Outside != want.Inside && have.Outside == have.Inside || have.Outside == nil:
		c.add(Missing, "view from outside of "+c.what, have.Inside.Rule)
	case want.Outside != want.Inside || have.Outside != have.Inside:
		c.view(" from outside", want.Outside, have.Outside)
	}
	switch {
	case want.Loopback != nil && have.Loopback == nil:
		c.add(Missing, c.what+" at 127.0.0.1", "")
	case want.Loopback == nil && have.Loopback != nil:
		c.add(Extra, c.what+" at 127.0.0.1", have.Loopback.Rule)
	case want.Loopback != nil:
		c.view(" at 127.0.0.1", want.Loopback, have.Loopback)
	}
	// Where nothing is forwarded, not every mode says what would be masqueraded.
	forwards := want.Inside.Action == model.Forward || want.Outside.Action == model.Forward
	if forwards && want.KeepsClient != have.KeepsClient {
		c.add(Other, fmt.Sprintf("masquerade of %s: keeps the client's address: %t instead of %t", c.what, have.KeepsClient, want.KeepsClient), have.Inside.Rule)
	}
}

func (c *comparison) view(side string, want, have *View) {
	want, have = want.plain(), have.plain()
	what := c.what + side
	if want.Restricted != have.Restricted {
		k := Missing
		if have.Restricted {
			k = Extra
		}
		c.add(k, "restriction of "+what+" to source ranges", have.Rule)
	} else {
		// They are one for both views: told twice, they are compacted to one.
		c.ranges("loadBalancerSourceRanges of "+c.what, want.SourceRanges, have.SourceRanges)
	}
	if want.Action != have.Action {
		c.add(Other, fmt.Sprintf("action of %s: %s instead of %s", what, have.Action, want.Action), have.Rule)
		return
	}
	if want.Affinity != have.Affinity && !have.Hashed {
		c.add(Other, fmt.Sprintf("session affinity of %s: %s instead of %s", what, have.Affinity, want.Affinity), have.Rule)
	}
	c.endpoints(what, want, have)
}

// plain returns v in one form where modes have two: a frontend that is restricted to
// nobody drops.
func (v *View) plain() *View {
	if v.Restricted && len(v.SourceRanges) == 0 {
		return &View{Action: model.Drop, Rule: v.Rule}
	}
	return v
}

// maxError is how far shares may differ by rounding.
const maxError = 1e-6

func (c *comparison) endpoints(what string, want, have *View) {
	found, missing := map[netip.AddrPort]Endpoint{}, strings.Join(have.Gaps, ", ")
	for _, e := range have.Endpoints {
		found[e.AddrPort] = e
	}
	before := len(c.out)
	for _, e := range want.Endpoints {
		if _, ok := found[e.AddrPort]; !ok {
			c.add(Missing, fmt.Sprintf("endpoint %s of %s", e.AddrPort, what), cmp.Or(missing, have.Rule))
		}
	}
	for _, e := range have.Endpoints {
		if !slices.ContainsFunc(want.Endpoints, func(w Endpoint) bool { return w.AddrPort == e.AddrPort }) {
			c.add(Extra, fmt.Sprintf("endpoint %s of %s", e.AddrPort, what), e.Rule)
		}
	}
	if len(c.out) > before {
		return // which changes the others' shares
	}
	for _, e := range want.Endpoints {
		if h := found[e.AddrPort]; math.Abs(h.Share-e.Share) > maxError {
			c.add(Other, fmt.Sprintf("share of endpoint %s of %s: %s instead of %s", e.AddrPort, what, percent(h.Share), percent(e.Share)), cmp.Or(missing, h.Rule))
		}
	}
}

func percent(share float64) string { return fmt.Sprintf("%.4g %%", 100*share) }

// addresses compares what the kernel knows of addresses, whatever the port.
func (c *comparison) addresses(want, have State) {
	for a, w := range want.Closed {
		h, ok := have.Closed[a]
		switch {
		case !ok && !have.Own[a]:
			c.add(Missing, fmt.Sprintf("refusal of ports without a Service at %s", a), "")
		case ok && w.Inside != h.Inside:
			c.add(Other, fmt.Sprintf("refusal of ports without a Service at %s: from inside too: %t instead of %t", a, h.Inside, w.Inside), h.Rule)
		}
	}
	for a, h := range have.Closed {
		if _, ok := want.Closed[a]; !ok {
			c.add(Extra, fmt.Sprintf("refusal of ports without a Service at %s", a), h.Rule)
		}
	}
	c.set("local endpoint", want.LocalEndpoints, have.LocalEndpoints)
	c.set("hairpin masquerade of endpoint", want.Hairpin, have.Hairpin)
}

func (c *comparison) set(what string, want, have map[netip.Addr]string) {
	for a := range want {
		if _, ok := have[a]; !ok {
			c.add(Missing, fmt.Sprintf("%s %s", what, a), "")
		}
	}
	for a, rule := range have {
		if _, ok := want[a]; !ok {
			c.add(Extra, fmt.Sprintf("%s %s", what, a), rule)
		}
	}
}

func (c *comparison) ranges(what string, want, have []Range) {
	w, h := merged(want), merged(have)
	for _, r := range slices.SortedFunc(maps.Keys(w), compareRanges) {
		if _, ok := h[r]; !ok {
			c.add(Missing, fmt.Sprintf("%s in %s", rangeText(r), what), "")
		}
	}
	for r, rule := range h {
		if _, ok := w[r]; !ok {
			c.add(Extra, fmt.Sprintf("%s in %s", rangeText(r), what), rule)
		}
	}
}

func rangeText(r model.AddrRange) string {
	if r.First == r.Last {
		return r.First.String()
	}
	return fmt.Sprintf("%s-%s", r.First, r.Last)
}

func compareRanges(a, b model.AddrRange) int {
	return cmp.Or(a.First.Compare(b.First), a.Last.Compare(b.Last))
}

// merged joins ranges that overlap, as modes write them differently; by rule.
func merged(rs []Range) map[model.AddrRange]string {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Range) int { return compareRanges(a.AddrRange, b.AddrRange) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && out[n-1].First.BitLen() == r.First.BitLen() && !out[n-1].Last.Less(r.First) {
			if out[n-1].Last.Less(r.Last) {
				out[n-1].Last = r.Last
			}
			continue
		}
		out = append(out, r)
	}
	all := map[model.AddrRange]string{}
	for _, r := range out {
		all[r.AddrRange] = r.Rule
	}
	return all
}
