// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/flowmatrix"
)

// rendered is a table's elements, and follows packets through them the way
// the program in program.go does.
type rendered struct {
	fam  model.Family
	node model.Node
	sets [numSets]map[string]string
	// ends are the ends of ranges, by start.
	ends map[setID]map[string]string
}

func renderAll(d model.Desired, fam model.Family) *rendered {
	r := &rendered{fam: fam, node: d.Node, ends: map[setID]map[string]string{}}
	for i := range r.sets {
		r.sets[i] = map[string]string{}
	}
	var open string
	emit := func(e element) {
		switch {
		case e.End:
			r.ends[e.set][open] = e.Key
		case e.set.ranges():
			if r.ends[e.set] == nil {
				r.ends[e.set] = map[string]string{}
			}
			open = e.Key
			r.ends[e.set][open] = strings.Repeat("\xff", 17)
		case e.KeyEnd != "":
			r.sets[e.set][e.Key] = e.KeyEnd
		default:
			r.sets[e.set][e.Key] = e.Value
		}
	}
	renderNode(&d.Node, fam, emit)
	for _, svc := range d.Services {
		render := newRenderer(fam)
		render.masqueradeAll = d.Node.MasqueradeAll
		render.service(svc, emit)
	}
	return r
}

func (r *rendered) inRanges(set setID, a netip.Addr) bool {
	key := string(a.AsSlice())
	for start, end := range r.ends[set] {
		if start <= key && key < end {
			return true
		}
	}
	return false
}

func (r *rendered) has(set setID, key string) bool { _, ok := r.sets[set][key]; return ok }

// follow gives what the rules do with a packet, in the terms of the table.
func (r *rendered) follow(p model.Packet) flowmatrix.Want {
	fe := string(appendFrontend(nil, model.Key{Addr: p.Destination, Port: p.Port, Protocol: p.Protocol}))
	np := string(appendFrontend(nil, model.Key{Addr: r.fam.Unspecified(), Port: p.Port, Protocol: p.Protocol}))
	if r.has(setRestricted, fe) && !r.admits(fe, p.Source) {
		return flowmatrix.Want{Action: model.Drop}
	}
	nodePort := p.ToSelf && r.inRanges(setNodePortAddresses, p.Destination)
	daddr := string(p.Destination.AsSlice())
	if !p.Self && !r.isLocalPod(p) {
		if w, ok := r.dispatch(use{outside: true}, fe, p); ok {
			return w
		}
		if nodePort {
			if w, ok := r.dispatch(use{outside: true, nodePort: true}, np, p); ok {
				return w
			}
		}
		if w, ok := r.dispatch(use{}, fe, p); ok {
			return w
		}
		if r.has(setLoadBalancerIPs, daddr) && !p.ToSelf {
			return flowmatrix.Want{Action: model.Reject}
		}
	}
	if w, ok := r.dispatch(use{}, fe, p); ok {
		return w
	}
	if r.has(setClusterIPs, daddr) {
		return flowmatrix.Want{Action: model.Reject}
	}
	if nodePort {
		if w, ok := r.dispatch(use{nodePort: true}, np, p); ok {
			return w
		}
	}
	return flowmatrix.Want{Untouched: true}
}

func (r *rendered) isLocalPod(p model.Packet) bool {
	if len(r.node.PodInterfaces) > 0 {
		return r.node.IsLocalPod(p.Source, p.Interface)
	}
	return r.inRanges(setLocalPods, p.Source)
}

func (r *rendered) admits(fe string, a netip.Addr) bool {
	key := fe + string(a.AsSlice())
	for start, end := range r.sets[setSourceRanges] {
		if start <= key && key <= end {
			return true
		}
	}
	return false
}

func (r *rendered) dispatch(u use, key string, p model.Packet) (flowmatrix.Want, bool) {
	value, ok := r.sets[u.of(setServices)][key]
	if !ok {
		return flowmatrix.Want{}, false
	}
	c := decodeClass(value)
	if got, want := r.sets[u.of(setClasses)][value], u.verdict(c); got != want {
		return flowmatrix.Want{Untouched: true}, true // no chain: the rule would not match
	}
	switch c {
	case classReject:
		return flowmatrix.Want{Action: model.Reject}, true
	case classDrop:
		return flowmatrix.Want{Action: model.Drop}, true
	}
	w := flowmatrix.Want{Sticky: c.affinity() > 0}
	for slot := range uint32(c.slots()) {
		ep, ok := r.endpoint(u, c, key, slot)
		if !ok {
			return flowmatrix.Want{Action: model.Drop}, true // a hole
		}
		place := flowmatrix.PlaceOf(ep)
		w.To = append(w.To, place)
		if r.masquerades(u, key, p, ep) {
			w.Masquerade = append(w.Masquerade, place)
		}
	}
	slices.Sort(w.To)
	slices.Sort(w.Masquerade)
	w.To, w.Masquerade = slices.Compact(w.To), slices.Compact(w.Masquerade)
	return w, true
}

func (r *rendered) endpoint(u use, c class, key string, slot uint32) (netip.Addr, bool) {
	set, id := setEndpoints, number(slot)
	if c.affinity() > 0 {
		var ok bool
		if id, ok = r.sets[u.of(setAffinitySlots)][key+id]; !ok {
			return netip.Addr{}, false
		}
		set = setAffinityEndpoints
	}
	v, ok := r.sets[u.of(set)][key+id]
	if !ok {
		return netip.Addr{}, false
	}
	a, _ := netip.AddrFromSlice([]byte(v[:len(v)-4]))
	return a, true
}

// masquerades follows the chain "masquerading".
func (r *rendered) masquerades(u use, key string, p model.Packet, ep netip.Addr) bool {
	src, dst := string(p.Source.AsSlice()), string(ep.AsSlice())
	switch {
	case p.Self && p.Source == ep:
		return false // oifname lo
	case r.node.MasqueradeAll && !r.has(u.keepsClient(), key):
		return true
	case r.has(setHairpin, src+dst):
		return true
	case !p.Self && r.isLocalPod(p):
		return false
	case p.Source.IsLoopback():
		return true
	}
	return !r.has(setLocalEndpoints, dst)
}

func TestFlowsOnElements(t *testing.T) {
	for _, row := range flowmatrix.Rows() {
		for _, f := range row.Families() {
			t.Run(row.Name+"/"+f.String(), func(t *testing.T) {
				d, _ := model.Compute(row.Snapshot(f))
				got := renderAll(d, f).follow(row.Packet(f))
				if diff := cmp.Diff(row.Want.String(), got.String()); diff != "" {
					t.Errorf("elements lead elsewhere (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func endpoints(n int) []model.Endpoint {
	eps := make([]model.Endpoint, n)
	for i := range eps {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0af40000+uint32(i))
		eps[i] = model.Endpoint{AddrPort: netip.AddrPortFrom(netip.AddrFrom4(a), 8080), Weight: 1}
	}
	return eps
}

func shares(table []int, n int) []int {
	count := make([]int, n)
	for _, i := range table {
		count[i]++
	}
	return count
}

func TestSlotTableIsEven(t *testing.T) {
	for _, n := range []int{1, 2, 3, 63, 64, 65, 100, 250, 1000, 4000} {
		got := shares(slotTable(endpoints(n)), n)
		least, most := slices.Min(got), slices.Max(got)
		if least < 1 || float64(most) > 1.25*float64(least)+0.01 {
			t.Errorf("%d endpoints: shares between %d and %d", n, least, most)
		}
	}
}

func TestSlotTableFollowsWeights(t *testing.T) {
	eps := endpoints(3)
	eps[0].Weight, eps[1].Weight, eps[2].Weight = 1, 2, 5
	table := slotTable(eps)
	got := shares(table, 3)
	for i, w := range []int{1, 2, 5} {
		want := float64(len(table)) * float64(w) / 8
		if diff := float64(got[i]) - want; diff > 1.5 || diff < -1.5 {
			t.Errorf("weight %d has %d of %d slots, want %.1f", w, got[i], len(table), want)
		}
	}
}

// One of n endpoints that goes takes its own slots and few others.
func TestSlotTableChangesLittle(t *testing.T) {
	eps := endpoints(200)
	before := slotTable(eps)
	less := slices.Delete(slices.Clone(eps), 77, 78)
	after := slotTable(less)
	if len(before) != len(after) {
		t.Fatalf("%d slots, then %d", len(before), len(after))
	}
	moved := 0
	for i := range before {
		if eps[before[i]] != less[after[i]] {
			moved++
		}
	}
	if limit := len(before) / 20; moved > limit {
		t.Errorf("%d of %d slots moved, want at most %d", moved, len(before), limit)
	}
}

func TestEndpointNumbersStay(t *testing.T) {
	eps := endpoints(50)
	before := map[netip.AddrPort]uint32{}
	for i, n := range endpointNumbers(eps) {
		before[eps[i].AddrPort] = n
	}
	if len(before) != len(slices.Compact(slices.Sorted(maps.Values(before)))) {
		t.Error("two endpoints have one number")
	}
	less := slices.Delete(slices.Clone(eps), 10, 30)
	for i, n := range endpointNumbers(less) {
		if before[less[i].AddrPort] != n {
			t.Errorf("%s had number %d, has %d", less[i].AddrPort, before[less[i].AddrPort], n)
		}
	}
}
