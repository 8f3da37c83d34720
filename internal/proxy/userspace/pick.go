// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// maxClients bounds the clients that a Service port remembers for affinity; past
// it, those that are remembered longest without use are forgotten.
const maxClients = 1 << 16

// frontend is one address and port that the proxy answers for. Its flows and
// what it remembers of clients outlive changes of the endpoints.
type frontend struct {
	mu      sync.Mutex
	service types.NamespacedName
	model   *model.Frontend // nil: it is gone
	// inside and outside are the same where the views do not differ.
	inside, outside *rotation
	clients         *clients
	flows           map[flowKey]*flow
	carried         map[*carried]struct{} // TCP connections
}

// clients are what all frontends of a Service port remember for affinity.
type clients struct {
	group model.Key
	users int // frontends
	mu    sync.Mutex
	of    map[netip.Addr]sticky
}

// sticky is the endpoint of a client, until it was not used for a while.
type sticky struct {
	endpoint netip.AddrPort
	until    time.Time
}

// rotation is smooth weighted round robin: each endpoint gains its weight a
// turn, and the one that is ahead pays the sum of all.
type rotation struct {
	target *model.Target
	ahead  []int
}

func newRotation(t *model.Target) *rotation {
	r := &rotation{target: t, ahead: make([]int, len(t.Endpoints))}
	if len(r.ahead) > 0 {
		// Nodes must not all begin with the same endpoint.
		r.ahead[rand.IntN(len(r.ahead))]++
	}
	return r
}

// next is the endpoint whose turn it is, other than those already tried.
func (r *rotation) next(tried []netip.AddrPort) (netip.AddrPort, bool) {
	best, sum := -1, 0
	for i := range r.target.Endpoints {
		e := &r.target.Endpoints[i]
		if slices.Contains(tried, e.AddrPort) {
			continue
		}
		weight := max(int(e.Weight), 1)
		r.ahead[i] += weight
		sum += weight
		if best < 0 || r.ahead[i] > r.ahead[best] {
			best = i
		}
	}
	if best < 0 {
		return netip.AddrPort{}, false
	}
	r.ahead[best] -= sum
	return r.target.Endpoints[best].AddrPort, true
}

func (r *rotation) has(ep netip.AddrPort) bool {
	return slices.ContainsFunc(r.target.Endpoints, func(e model.Endpoint) bool { return e.AddrPort == ep })
}

// ending is what ends: a UDP flow or a TCP connection.
type ending interface{ end() }

// set takes over a new state; nil is that there is none any more. It returns
// the flows that must end by it, and if reset says so the TCP connections.
func (f *frontend) set(service types.NamespacedName, m *model.Frontend, reset bool) []ending {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case m == nil:
		f.inside, f.outside = nil, nil
	case f.model == nil || !f.model.Inside.Equal(m.Inside) || !f.model.Outside.Equal(m.Outside):
		f.inside = newRotation(m.Inside)
		f.outside = f.inside
		if !m.Outside.Equal(m.Inside) {
			f.outside = newRotation(m.Outside)
		}
	}
	f.service, f.model = service, m
	var over []ending
	for _, fl := range f.flows {
		if !f.keeps(fl.endpoint) || !f.admits(fl.key.client.Addr()) {
			over = append(over, fl)
		}
	}
	for c := range f.carried {
		if reset && (!f.keeps(c.endpoint) || !f.admits(c.client)) {
			over = append(over, c)
		}
	}
	return over
}

// retire takes no more connections; those that there are stay for now.
func (f *frontend) retire() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inside, f.outside, f.model = nil, nil, nil
}

// admits says whether the source ranges contain a client; mu is held.
func (f *frontend) admits(client netip.Addr) bool {
	return f.model == nil || !f.model.Restricted ||
		slices.ContainsFunc(f.model.SourceRanges, func(p netip.Prefix) bool { return p.Contains(client.WithZone("")) })
}

// keeps says whether a flow may stay with an endpoint; mu is held.
func (f *frontend) keeps(ep netip.AddrPort) bool {
	return f.model != nil && slices.Contains(f.model.Serving, ep)
}

func (f *frontend) name() types.NamespacedName {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.service
}

// pick chooses the endpoint of a new connection or flow, other than those
// already tried.
func (f *frontend) pick(v view, client netip.Addr, tried []netip.AddrPort, now time.Time) (netip.AddrPort, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.inside
	if v == viewOutside {
		r = f.outside
	}
	if r == nil {
		return netip.AddrPort{}, false
	}
	client = client.WithZone("")
	lasts := r.target.Affinity
	if lasts > 0 && len(tried) == 0 {
		if ep, ok := f.clients.again(client, r, now); ok {
			return ep, true
		}
	}
	ep, ok := r.next(tried)
	if ok && lasts > 0 {
		f.clients.remember(client, sticky{ep, now.Add(lasts)}, now)
	}
	return ep, ok
}

// again gives the endpoint that a client has, if it is still among those of r,
// and its time begins anew.
func (c *clients) again(client netip.Addr, r *rotation, now time.Time) (netip.AddrPort, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.of[client]
	if !ok || !now.Before(s.until) || !r.has(s.endpoint) {
		return netip.AddrPort{}, false
	}
	c.of[client] = sticky{s.endpoint, now.Add(r.target.Affinity)}
	return s.endpoint, true
}

// remember makes room if it has to: first by what has expired, then by what
// will soonest.
func (c *clients) remember(client netip.Addr, s sticky, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.of[client]; !known && len(c.of) >= maxClients {
		ends := make([]time.Time, 0, len(c.of))
		for _, old := range c.of {
			ends = append(ends, old.until)
		}
		slices.SortFunc(ends, time.Time.Compare)
		limit := ends[len(ends)/8]
		for other, old := range c.of {
			if !old.until.After(limit) || now.After(old.until) {
				delete(c.of, other)
			}
		}
	}
	if c.of == nil {
		c.of = map[netip.Addr]sticky{}
	}
	c.of[client] = s
}
