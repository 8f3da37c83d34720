// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables/nfnl"
)

// element is one element of one set, in the kernel's bytes.
type element struct {
	set setID
	nfnl.Element
}

// id tells elements of a set apart: two with the same id cannot both exist.
func (e *element) id() elementID {
	key := e.Key + e.KeyEnd
	if e.End {
		key += "\x00end"
	}
	return elementID{e.set, key}
}

type elementID struct {
	set setID
	key string
}

// appendFrontend encodes address . protocol . port, without the address for
// a NodePort.
func appendFrontend(b []byte, k model.Key) []byte {
	if !k.Addr.IsUnspecified() {
		b = append(b, k.Addr.AsSlice()...)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return append(b, 0, 0)
}

func appendEndpoint(b []byte, ap netip.AddrPort) []byte {
	b = append(b, ap.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, ap.Port())
	return append(b, 0, 0)
}

func number(n uint32) string {
	return string(binary.NativeEndian.AppendUint32(nil, n))
}

// render gives the elements of one Service in one family, each once. The
// order is that of the frontends, so equal Services render equally.
func render(svc *model.Service, fam model.Family, emit func(element)) {
	seen := map[elementID]bool{}
	once := func(set setID, key, value string) {
		e := element{set, nfnl.Element{Key: key, Value: value}}
		if id := e.id(); !seen[id] {
			seen[id] = true
			emit(e)
		}
	}
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		if f.Family() != fam {
			continue
		}
		addr := string(f.Addr.AsSlice())
		switch f.Kind {
		case model.ClusterIP:
			once(setClusterIPs, addr, "")
		case model.LoadBalancerIP:
			once(setLoadBalancerIPs, addr, "")
		}
		u := use{nodePort: f.Kind == model.NodePort}
		renderTarget(f, f.Inside, u, emit, once)
		if f.Outside != f.Inside && !f.Outside.Equal(f.Inside) {
			u.outside = true
			renderTarget(f, f.Outside, u, emit, once)
		}
		renderSourceRanges(f, emit)
	}
}

// renderTarget gives the elements of one frontend seen from one side.
func renderTarget(f *model.Frontend, t *model.Target, u use, emit func(element), once func(setID, string, string)) {
	fe := appendFrontend(make([]byte, 0, 28), f.Key)
	var c class
	switch t.Action {
	case model.Forward:
		c = renderEndpoints(fe, t, u, emit)
	case model.Drop:
		c = classDrop
	case model.Reject:
		c = classReject
	}
	emit(element{u.of(setServices), nfnl.Element{Key: string(fe), Value: number(uint32(c))}})
	once(u.of(setClasses), number(uint32(c)), u.verdict(c))
	for i := range t.Endpoints {
		if t.Endpoints[i].Local {
			a := string(t.Endpoints[i].AddrPort.Addr().AsSlice())
			once(setLocalEndpoints, a, "")
			once(setHairpin, a+a, "")
		}
	}
}

// classElement leads from a class to its verdict.
func classElement(u use, c class) element {
	return element{u.of(setClasses), nfnl.Element{Key: number(uint32(c)), Value: u.verdict(c)}}
}

// renderEndpoints gives the slots. With affinity there is one step more,
// because a client is to remember an endpoint and not a slot: slots lead to
// the endpoints' numbers, and those to the endpoints.
func renderEndpoints(fe []byte, t *model.Target, u use, emit func(element)) class {
	table := slotTable(t.Endpoints)
	key := func(n uint32) string { return string(binary.NativeEndian.AppendUint32(fe[:len(fe):len(fe)], n)) }
	var buf [20]byte
	value := func(i int) string { return string(appendEndpoint(buf[:0], t.Endpoints[i].AddrPort)) }
	if t.Affinity == 0 {
		for slot, i := range table {
			emit(element{u.of(setEndpoints), nfnl.Element{Key: key(uint32(slot)), Value: value(i)}})
		}
		return newClass(len(table), 0)
	}
	numbers := endpointNumbers(t.Endpoints)
	for i := range t.Endpoints {
		emit(element{u.of(setAffinityEndpoints), nfnl.Element{Key: key(numbers[i]), Value: value(i)}})
	}
	for slot, i := range table {
		emit(element{u.of(setAffinitySlots), nfnl.Element{Key: key(uint32(slot)), Value: number(numbers[i])}})
	}
	return newClass(len(table), t.Affinity)
}

func renderSourceRanges(f *model.Frontend, emit func(element)) {
	if !f.Restricted {
		return
	}
	fe := string(appendFrontend(nil, f.Key))
	emit(element{setRestricted, nfnl.Element{Key: fe}})
	for _, p := range f.SourceRanges {
		emit(element{setSourceRanges, nfnl.Element{
			Key:    fe + string(p.Addr().AsSlice()),
			KeyEnd: fe + string(model.RangeOf(p).Last.AsSlice()),
		}})
	}
}

// renderNode gives the elements that follow from the node alone.
func renderNode(n *model.Node, fam model.Family, emit func(element)) {
	for _, u := range uses {
		for _, c := range []class{classReject, classDrop} {
			emit(classElement(u, c))
		}
		for slots := 1; slots <= u.baseClasses(); slots++ {
			emit(classElement(u, newClass(slots, 0)))
		}
	}
	for _, p := range inFamily(n.PodCIDRs, fam) {
		emitRange(setLocalPods, model.RangeOf(p), emit)
	}
	for _, r := range n.NodePortRanges(fam) {
		emitRange(setNodePortAddresses, r, emit)
	}
}

// inFamily gives the ranges of one family, disjoint and sorted.
func inFamily(ps []netip.Prefix, fam model.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if model.FamilyOf(p.Addr()) == fam {
			out = append(out, p.Masked())
		}
	}
	return model.Disjoint(out)
}

// emitRange writes an inclusive range the way a single-part interval set
// wants it: its start, and the first address behind it marked as the end.
func emitRange(set setID, r model.AddrRange, emit func(element)) {
	emit(element{set, nfnl.Element{Key: string(r.First.AsSlice())}})
	if next := r.Last.Next(); next.IsValid() {
		emit(element{set, nfnl.Element{Key: string(next.AsSlice()), End: true}})
	}
}
