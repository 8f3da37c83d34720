// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// element is one element of one set, in the kernel's bytes.
type element struct {
	set setID
	nft.Element
}

// id tells elements of a set apart: two with the same id cannot both exist.
func (e *element) id() elementID { return elementID{e.set, e.ID()} }

type elementID struct {
	set setID
	key string
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		v4 := a.As4()
		return append(b, v4[:]...)
	}
	v6 := a.As16()
	return append(b, v6[:]...)
}

// appendFrontend encodes address . protocol . port, without the address for
// a NodePort.
func appendFrontend(b []byte, k model.Key) []byte {
	if !k.Addr.IsUnspecified() {
		b = appendAddr(b, k.Addr)
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, k.Port)
	return append(b, 0, 0)
}

func appendEndpoint(b []byte, ap netip.AddrPort) []byte {
	b = appendAddr(b, ap.Addr())
	b = binary.BigEndian.AppendUint16(b, ap.Port())
	return append(b, 0, 0)
}

func number(n uint32) string {
	return string(binary.NativeEndian.AppendUint32(nil, n))
}

// renderer gives the elements of Services in one family. All bytes of one
// Service are one string, of which its elements are parts: rendering costs
// the same few allocations however many elements there are.
type renderer struct {
	fam   model.Family
	bytes []byte
	parts []part
	// masqueradeAll is the node's.
	masqueradeAll bool
	// verdicts are the values of classes maps, which are few.
	verdicts map[verdictKey]string
}

// part is an element whose key is bytes[key:end], the end of its range
// bytes[end:value] and its value bytes[value:next], or verdict if that is set.
type part struct {
	set                   setID
	key, end, value, next int
	verdict               string
}

type verdictKey struct {
	u use
	c class
}

func newRenderer(fam model.Family) *renderer {
	return &renderer{fam: fam, verdicts: map[verdictKey]string{}}
}

// service emits the elements of one Service. The order is that of the
// frontends, so equal Services render equally. An element of a shared set can
// come several times, as often each time.
func (r *renderer) service(svc *model.Service, emit func(element)) {
	r.bytes, r.parts = r.bytes[:0], r.parts[:0]
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		if f.Family() != r.fam {
			continue
		}
		switch f.Kind {
		case model.ClusterIP:
			r.address(setClusterIPs, f.Addr)
		case model.LoadBalancerIP:
			r.address(setLoadBalancerIPs, f.Addr)
		}
		u := use{nodePort: f.Kind == model.NodePort}
		if f.Inside.Affinity > 0 || f.Outside.Affinity > 0 {
			r.group(f, u)
		}
		if r.masqueradeAll && f.KeepsClient {
			key := r.begin()
			r.bytes = appendFrontend(r.bytes, f.Key)
			r.done(u.keepsClient(), key, len(r.bytes))
		}
		r.target(f, f.Inside, u)
		if f.Outside != f.Inside && !f.Outside.Equal(f.Inside) {
			u.outside = true
			r.target(f, f.Outside, u)
		}
		r.sourceRanges(f)
	}
	all := string(r.bytes)
	for i := range r.parts {
		p := &r.parts[i]
		e := element{p.set, nft.Element{Key: all[p.key:p.end], KeyEnd: all[p.end:p.value], Value: all[p.value:p.next]}}
		if p.verdict != "" {
			e.Value = p.verdict
		}
		emit(e)
	}
}

// classes calls each for the classes of one Service, which service will use;
// it costs much less than service.
func (r *renderer) classes(svc *model.Service, each func(use, class)) {
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		if f.Family() != r.fam {
			continue
		}
		u := use{nodePort: f.Kind == model.NodePort}
		each(u, classOfTarget(f.Inside))
		if f.Outside != f.Inside && !f.Outside.Equal(f.Inside) {
			u.outside = true
			each(u, classOfTarget(f.Outside))
		}
	}
}

func classOfTarget(t *model.Target) class {
	switch t.Action {
	case model.Drop:
		return classDrop
	case model.Reject:
		return classReject
	}
	return newClass(model.Slots(t.Endpoints), t.Affinity)
}

// begin is where the next element's key starts.
func (r *renderer) begin() int { return len(r.bytes) }

// done ends an element whose key began at key and whose value at value.
func (r *renderer) done(set setID, key, value int) {
	r.parts = append(r.parts, part{set: set, key: key, end: value, value: value, next: len(r.bytes)})
}

func (r *renderer) address(set setID, a netip.Addr) {
	key := r.begin()
	r.bytes = appendAddr(r.bytes, a)
	r.done(set, key, len(r.bytes))
}

func (r *renderer) number(n uint32) { r.bytes = binary.NativeEndian.AppendUint32(r.bytes, n) }

// target gives the elements of one frontend seen from one side.
func (r *renderer) target(f *model.Frontend, t *model.Target, u use) {
	var buf [28]byte
	fe := appendFrontend(buf[:0], f.Key)
	if t.Action == model.Forward {
		r.endpoints(fe, t, u)
	}
	c := classOfTarget(t)
	key := r.begin()
	r.bytes = append(r.bytes, fe...)
	value := r.begin()
	r.number(uint32(c))
	r.done(u.of(setServices), key, value)
	r.class(u, c)
	for i := range t.Endpoints {
		if t.Endpoints[i].Local {
			a := t.Endpoints[i].AddrPort.Addr()
			r.address(setLocalEndpoints, a)
			key := r.begin()
			r.bytes = appendAddr(appendAddr(r.bytes, a), a)
			r.done(setHairpin, key, len(r.bytes))
		}
	}
}

// group gives the frontend's affinity group, as a hash that does not depend on the
// process. Two Service ports whose hashes are equal only make a client that uses both
// of them change its endpoint when it goes from one to the other.
func (r *renderer) group(f *model.Frontend, u use) {
	g := f.AffinityGroup()
	key := r.begin()
	r.bytes = appendFrontend(r.bytes, f.Key)
	value := r.begin()
	r.number(uint32(endpointHash(netip.AddrPortFrom(g.Addr, g.Port)) + uint64(g.Protocol)*0x9e3779b9))
	r.done(u.groups(), key, value)
}

// class leads from a class to its verdict.
func (r *renderer) class(u use, c class) {
	verdict, ok := r.verdicts[verdictKey{u, c}]
	if !ok {
		verdict = u.verdict(c)
		r.verdicts[verdictKey{u, c}] = verdict
	}
	key := r.begin()
	r.number(uint32(c))
	r.done(u.of(setClasses), key, len(r.bytes))
	r.parts[len(r.parts)-1].verdict = verdict
}

// classElement leads from a class to its verdict.
func classElement(u use, c class) element {
	return element{u.of(setClasses), nft.Element{Key: number(uint32(c)), Value: u.verdict(c)}}
}

// endpoints gives the slots. With affinity there is one step more, because a
// client is to remember an endpoint and not a slot: slots lead to the
// endpoints' numbers, and those to the endpoints.
func (r *renderer) endpoints(fe []byte, t *model.Target, u use) {
	table := slotTable(t.Endpoints)
	if t.Affinity == 0 {
		for slot, i := range table {
			r.endpoint(u.of(setEndpoints), fe, uint32(slot), t.Endpoints[i].AddrPort)
		}
		return
	}
	numbers := endpointNumbers(t.Endpoints)
	for i := range t.Endpoints {
		r.endpoint(u.of(setAffinityEndpoints), fe, numbers[i], t.Endpoints[i].AddrPort)
	}
	for slot, i := range table {
		key := r.begin()
		r.bytes = append(r.bytes, fe...)
		r.number(uint32(slot))
		value := r.begin()
		r.number(numbers[i])
		r.done(u.of(setAffinitySlots), key, value)
	}
}

// endpoint gives frontend . number -> endpoint.
func (r *renderer) endpoint(set setID, fe []byte, n uint32, ap netip.AddrPort) {
	key := r.begin()
	r.bytes = append(r.bytes, fe...)
	r.number(n)
	value := r.begin()
	r.bytes = appendEndpoint(r.bytes, ap)
	r.done(set, key, value)
}

func (r *renderer) sourceRanges(f *model.Frontend) {
	if !f.Restricted {
		return
	}
	key := r.begin()
	r.bytes = appendFrontend(r.bytes, f.Key)
	r.done(setRestricted, key, len(r.bytes))
	for _, p := range f.SourceRanges {
		key := r.begin()
		r.bytes = appendAddr(appendFrontend(r.bytes, f.Key), p.Addr())
		end := r.begin()
		r.bytes = appendAddr(appendFrontend(r.bytes, f.Key), model.RangeOf(p).Last)
		r.done(setSourceRanges, key, end)
		r.parts[len(r.parts)-1].value = len(r.bytes)
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
	emit(element{set, nft.Element{Key: string(r.First.AsSlice())}})
	if next := r.Last.Next(); next.IsValid() {
		emit(element{set, nft.Element{Key: string(next.AsSlice()), End: true}})
	}
}
