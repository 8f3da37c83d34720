// SPDX-License-Identifier: Apache-2.0

package elect

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// LoadFactor bounds a node's share: at most this many times the mean.
const LoadFactor = 1.5

// Result is the outcome for one address.
type Result struct {
	// Announcer is the node that has to announce; empty when no node may.
	Announcer string
	// Ranks are all nodes that may, the announcer first, then its successors by
	// grade and descending score.
	Ranks []string
	// Grades are those of Ranks; nil where all are 0.
	Grades []Grade
}

// Rank returns the position of node in r.Ranks, or -1.
func (r Result) Rank(node string) int { return slices.Index(r.Ranks, node) }

// Grade returns the grade of a node, which is the worst possible if it is not in
// r.Ranks.
func (r Result) Grade(node string) Grade {
	switch at := r.Rank(node); {
	case at < 0:
		return math.MaxUint8
	case r.Grades == nil:
		return 0
	default:
		return r.Grades[at]
	}
}

// Preferred reports whether node may announce and is of the announcer's grade. The
// others are for when none of these can.
func (r Result) Preferred(node string) bool {
	return r.Rank(node) >= 0 && r.Grade(node) == r.Grade(r.Announcer)
}

// Score is how much address prefers node: higher is better. It depends on
// nothing else, so that two agents with different views of the cluster still
// agree on which of the two of them outranks the other.
func Score(address netip.Addr, node string) uint64 {
	return score(hashAddr(address), hashName(node))
}

// Outranks reports whether node a comes before node b for address, whatever other
// nodes there are. Of two different nodes exactly one outranks the other.
func Outranks(address netip.Addr, a, b string) bool {
	sa, sb := Score(address, a), Score(address, b)
	if sa != sb {
		return sa > sb
	}
	return a < b
}

// Elect places every address. The results are in the order of addresses.
// Names of nodes, and addresses, must be unique.
func Elect(nodes []Node, addresses []Address) []Result {
	e := election{nodes: nodes, addresses: addresses}
	e.rank()
	e.bound()
	e.match()

	out := make([]Result, len(addresses))
	for i := range addresses {
		prefs := e.prefs[i]
		if len(prefs) == 0 {
			continue
		}
		r := Result{Announcer: nodes[e.placed[i]].Name, Ranks: make([]string, 0, len(prefs))}
		r.Ranks = append(r.Ranks, r.Announcer)
		for _, p := range prefs {
			if p.node != e.placed[i] {
				r.Ranks = append(r.Ranks, nodes[p.node].Name)
			}
		}
		if prefs[len(prefs)-1].grade > 0 { // the worst
			r.Grades = make([]Grade, 0, len(prefs))
			r.Grades = append(r.Grades, prefs[0].grade) // all preferred ones have that
			for _, p := range prefs {
				if p.node != e.placed[i] {
					r.Grades = append(r.Grades, p.grade)
				}
			}
		}
		out[i] = r
	}
	return out
}

// election is the working state of one Elect.
type election struct {
	nodes     []Node
	addresses []Address
	prefs     [][]preference // by address: eligible nodes, best first
	best      []int          // by address: how many of prefs are of the first one's grade
	capacity  []int          // by node
	placed    []int32        // by address: index of the node, or -1
}

type preference struct {
	score uint64
	node  int32
	grade Grade
}

// preferencesAtOnce is for how many memory is taken: thousands of small pieces cost
// more.
const preferencesAtOnce = 1024

// rank fills prefs and best.
func (e *election) rank() {
	hashes := make([]uint64, len(e.nodes))
	grades := make([]Grade, len(e.nodes))
	for i := range e.nodes {
		hashes[i], grades[i] = hashName(e.nodes[i].Name), Graded(&e.nodes[i])
	}
	var room []preference        // for those of the next addresses
	allowed := map[*Pool][]int{} // nodes that pass the pool's part of Eligibility
	e.prefs, e.best = make([][]preference, len(e.addresses)), make([]int, len(e.addresses))
	for i := range e.addresses {
		a := &e.addresses[i]
		may, ok := allowed[a.Pool]
		if !ok {
			for n := range e.nodes {
				if nodeEligibility(&e.nodes[n], a.Pool) == Eligible {
					may = append(may, n)
				}
			}
			allowed[a.Pool] = may
		}
		if cap(room)-len(room) < len(may) {
			room = make([]preference, 0, max(len(may), preferencesAtOnce))
		}
		prefs := room[len(room):]
		ha, edge, reserved := hashAddr(a.Addr), a.edge(), false
		for _, n := range may {
			switch r, routed := placeEligibility(&e.nodes[n], a, edge); r {
			case Reserved:
				reserved = true
			case Eligible:
				grade := grades[n]
				if routed {
					grade |= gradeRouted
				}
				prefs = append(prefs, preference{score(ha, hashes[n]), int32(n), grade})
			}
		}
		if reserved { // where the address belongs; elsewhere no host asks for it
			prefs = slices.DeleteFunc(prefs, func(p preference) bool { return p.grade&gradeRouted != 0 })
		}
		slices.SortFunc(prefs, func(x, y preference) int {
			switch {
			case x.grade != y.grade:
				return int(x.grade) - int(y.grade)
			case x.score > y.score:
				return -1
			case x.score < y.score:
				return 1
			}
			return cmp.Compare(e.nodes[x.node].Name, e.nodes[y.node].Name)
		})
		room = room[:len(room)+len(prefs)]
		e.prefs[i] = prefs
		for e.best[i] < len(prefs) && prefs[e.best[i]].grade == prefs[0].grade {
			e.best[i]++
		}
	}
}

// bound returns each node its capacity. An address that k nodes of the best grade
// may announce counts 1/k towards the fair share of each of them.
func (e *election) bound() {
	// Counted in integers by k, because a floating-point sum would depend on
	// the order of the addresses.
	byK := map[int][]int{} // by node
	for i, prefs := range e.prefs {
		k := e.best[i]
		if byK[k] == nil {
			byK[k] = make([]int, len(e.nodes))
		}
		counts := byK[k]
		for _, p := range prefs[:k] {
			counts[p.node]++
		}
	}
	ks := slices.Sorted(maps.Keys(byK))
	e.capacity = make([]int, len(e.nodes))
	for n := range e.nodes {
		share := 0.0
		for _, k := range ks {
			if counts := byK[k]; counts[n] > 0 {
				share += float64(counts[n]) / float64(k)
			}
		}
		e.capacity[n] = int(math.Ceil(share*LoadFactor - 1e-9))
	}
}

// match runs deferred acceptance: addresses propose to nodes in their order of
// preference, a full node keeps the best and sends the worst on to its next.
// An address that every node sends on (eligible sets may be lopsided) goes to
// its best node over the bound.
func (e *election) match() {
	e.placed = make([]int32, len(e.addresses))
	next := make([]int, len(e.addresses))
	kept := make([]proposals, len(e.nodes))
	for i := range e.addresses {
		e.placed[i] = -1
		for at := i; at >= 0; {
			prefs := e.prefs[at][:e.best[at]]
			if next[at] == len(prefs) {
				if len(prefs) > 0 {
					e.placed[at] = prefs[0].node
				}
				break
			}
			p := prefs[next[at]]
			next[at]++
			heap.Push(&kept[p.node], proposal{at, p.score, e.addresses[at].Addr})
			e.placed[at] = p.node
			at = -1
			if kept[p.node].Len() > e.capacity[p.node] {
				worst := heap.Pop(&kept[p.node]).(proposal)
				e.placed[worst.address] = -1
				at = worst.address
			}
		}
	}
}

// proposal is an address that a node keeps for now.
type proposal struct {
	address int
	score   uint64
	addr    netip.Addr
}

// proposals is a heap with the least wanted address on top.
type proposals []proposal

func (p proposals) Len() int { return len(p) }
func (p proposals) Less(i, j int) bool {
	if p[i].score != p[j].score {
		return p[i].score < p[j].score
	}
	return p[i].addr.Less(p[j].addr)
}
func (p proposals) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *proposals) Push(x any)   { *p = append(*p, x.(proposal)) }
func (p *proposals) Pop() any {
	last := (*p)[len(*p)-1]
	*p = (*p)[:len(*p)-1]
	return last
}

func hashName(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return mix(h.Sum64())
}

func hashAddr(a netip.Addr) uint64 {
	b := a.As16()
	return mix(binary.BigEndian.Uint64(b[:8]) ^ mix(binary.BigEndian.Uint64(b[8:])))
}

func score(address, node uint64) uint64 { return mix(address ^ node) }

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): every bit
// of the input changes about half of the output's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
