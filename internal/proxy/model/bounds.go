// SPDX-License-Identifier: Apache-2.0

package model

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"
)

// What one Service may cost a node. Tenants write Services and slices; what these
// can say at most, all ports times all addresses times all endpoints, would take
// every node's memory and the time of everybody else's changes.
const (
	// MaxFrontends bounds the frontends of one Service and family.
	MaxFrontends = 1 << 16
	// MaxSlots bounds the sum of Slots over a Service's frontends, each view that
	// differs counted. A Service with one port at three addresses reaches it with
	// some 10,000 endpoints.
	MaxSlots = 1 << 17
	// maxEntries bounds the sum of endpoints over a Service's ports in a family,
	// before it is known which of them are used.
	maxEntries = 1 << 19
)

const (
	// maxExact is the largest number of endpoints that get one slot each.
	// Beyond it, and with weights, the slots are a power of two, so that there
	// are few different numbers of slots and a change moves few of them.
	maxExact = 64
	// slotsPerEndpoint is how many slots each endpoint gets at least then: with
	// 4, shares differ by a quarter at most.
	slotsPerEndpoint = 4
	// MaxTable is the largest number of slots of a target.
	MaxTable = 1 << 14
)

// Slots is into how many equal shares new connections to eps are divided, which
// is what a target costs a table: one each for up to 64 endpoints of one weight, else a
// power of two up to 16384.
func Slots(eps []Endpoint) int {
	weights, equal := 0, true
	for i := range eps {
		weights += max(int(eps[i].Weight), 1)
		equal = equal && eps[i].Weight == eps[0].Weight
	}
	if equal && len(eps) <= maxExact {
		return len(eps)
	}
	if equal {
		weights = len(eps)
	}
	return min(1<<bits.Len(uint(weights*slotsPerEndpoint-1)), MaxTable)
}

// limitAddresses leaves out what would give the Service more than MaxFrontends
// with this many ports. The ClusterIP is never left out.
func (c *computation) limitAddresses(ports int, lbIPs, externalIPs []netip.Addr) (lb, external []netip.Addr) {
	left := MaxFrontends/max(ports, 1) - 2 // ClusterIP and NodePort
	n := len(lbIPs) + len(externalIPs)
	lb = lbIPs[:min(len(lbIPs), max(left, 0))]
	external = externalIPs[:min(len(externalIPs), max(left-len(lb), 0))]
	if less := len(lb) + len(external); less < n {
		c.problem("TooManyFrontends", "%d ports at %d load balancer and external IPs are more than the %d frontends that a node has for one Service: "+
			"the last %d addresses are not served; use fewer ports or addresses, or several Services", ports, n, MaxFrontends, n-less)
	}
	return lb, external
}

// limitRanges leaves out source ranges that would give a restricted Service more
// than MaxSlots of them over all its frontends, which only ever closes.
func (c *computation) limitRanges(ranges []netip.Prefix, frontends int) []netip.Prefix {
	n := max(MaxSlots/max(frontends, 1), 1)
	if len(ranges) <= n {
		return ranges
	}
	c.problem("TooManySourceRanges", "%d source ranges for each of %d frontends are more than the %d that a node has for one Service: "+
		"the last %d admit nobody; merge ranges, or use fewer ports or addresses", len(ranges), frontends, MaxSlots, len(ranges)-n)
	return ranges[:n]
}

// limitEntries leaves out endpoints if all ports together have more than
// maxEntries of them. Those that are ready stay, and each node keeps others.
func (c *computation) limitEntries(used []*slice, entries int) {
	if entries <= maxEntries {
		return
	}
	for _, s := range used {
		n := max(len(s.endpoints)*maxEntries/entries, 1)
		s.endpoints = best(c.node.Name, s.endpoints, n, func(cand *candidate) (uint64, *Endpoint) {
			order := uint64(2)
			switch {
			case cand.ready:
				order = 0
			case cand.fallback():
				order = 1
			}
			return order, &cand.Endpoint
		})
	}
	c.tooMany(entries, maxEntries)
}

func (c *computation) tooMany(n, limit int) {
	c.problem("TooManyEndpoints", "%d entries of endpoints, over all ports and addresses, are more than the %d that a node has for one Service: "+
		"this node forwards to some of the endpoints, other nodes to others, or gives up their weights; use fewer ports, addresses or endpoints, or several Services", n, limit)
}

// limitSlots leaves out endpoints of the largest targets if the Service has more
// than MaxSlots. Established flows may stay with what is left out.
func (c *computation) limitSlots() {
	var costs []int
	total := 0
	var last *Target
	n := 0
	add := func(t *Target) {
		if t != last {
			last, n = t, Slots(t.Endpoints)
		}
		total += n
		costs = append(costs, n)
	}
	for i := range c.out.Frontends {
		f := &c.out.Frontends[i]
		add(f.Inside)
		if f.Outside != f.Inside {
			add(f.Outside)
		}
	}
	if total <= MaxSlots {
		return
	}
	limit := waterline(costs, MaxSlots)
	trimmed := map[*Target]*Target{}
	trim := func(t *Target) *Target {
		if trimmed[t] == nil {
			trimmed[t] = c.trim(t, limit)
		}
		return trimmed[t]
	}
	for i := range c.out.Frontends {
		f := &c.out.Frontends[i]
		f.Inside, f.Outside = trim(f.Inside), trim(f.Outside)
	}
	c.tooMany(total, MaxSlots)
}

// waterline is the largest number, at least 1, to which costs must be cut so that
// their sum does not exceed budget.
func waterline(costs []int, budget int) int {
	slices.Sort(costs)
	for i, cost := range costs {
		if share := budget / (len(costs) - i); cost > share {
			return max(share, 1)
		}
		budget -= cost
	}
	return max(costs[len(costs)-1], 1)
}

// trim gives t with as many of its endpoints as limit slots have room for.
// Weights are given up where they would need more.
func (c *computation) trim(t *Target, limit int) *Target {
	if Slots(t.Endpoints) <= limit {
		return t
	}
	out := *t
	n := max(min(limit, maxExact), 1<<(bits.Len(uint(limit))-1)/slotsPerEndpoint)
	out.Endpoints = best(c.node.Name, t.Endpoints, n, func(e *Endpoint) (uint64, *Endpoint) { return 0, e })
	if Slots(out.Endpoints) > limit {
		out.Endpoints = slices.Clone(out.Endpoints)
		for i := range out.Endpoints {
			out.Endpoints[i].Weight = 1
		}
	}
	return &out
}

// best gives n of all, in the order that they had: those of the lowest order, and
// among those some that differ from node to node.
func best[T any](node string, all []T, n int, order func(*T) (uint64, *Endpoint)) []T {
	if len(all) <= n {
		return all
	}
	type ranked struct {
		order, rank uint64
		at          int
	}
	rs := make([]ranked, len(all))
	for i := range all {
		o, e := order(&all[i])
		rs[i] = ranked{o, nodeRank(node, e.AddrPort.Addr()), i}
	}
	slices.SortFunc(rs, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.rank, b.rank), cmp.Compare(a.at, b.at))
	})
	rs = rs[:n]
	slices.SortFunc(rs, func(a, b ranked) int { return cmp.Compare(a.at, b.at) })
	out := make([]T, n)
	for i, r := range rs {
		out[i] = all[r.at]
	}
	return out
}

// nodeRank orders addresses differently on each node, and equally whenever it is
// asked.
func nodeRank(node string, a netip.Addr) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	b := a.As16()
	_, _ = h.Write(b[:])
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], h.Sum64())
	_, _ = h.Write(sum[:]) // FNV leaves neighbours alike: once more
	return h.Sum64()
}
