// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"net/netip"

	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// server is a virtual server as it must be.
type server struct {
	ipvs.Settings
	reals map[netip.AddrPort]uint32 // weights
	// atOnce says that removed real servers must not stay to drain.
	atOnce bool
}

// rendered is what one Service comes to.
type rendered struct {
	servers map[ipvs.Key]*server
	// elements are values by element, "" where a set has none. Elements that
	// several Services can have are counted by whoever adds them up.
	elements elements.Map[setID]
}

// renderer turns Services into virtual servers and elements. It keeps nothing
// but the marks that it gave.
type renderer struct {
	scheduler string
	families  []model.Family
	marks     *marks
	// byInterface says that Pods are known by their interface, which
	// postrouting cannot see: a mark then tells inside from outside.
	byInterface bool
	// masqueradeAll is the node's.
	masqueradeAll bool
	// loopback says that NodePorts answer at 127.0.0.1.
	loopback bool
}

func (r *renderer) render(svc *model.Service) rendered {
	out := rendered{servers: map[ipvs.Key]*server{}, elements: elements.Map[setID]{}}
	if svc == nil {
		return out
	}
	for i := range svc.Frontends {
		f := &svc.Frontends[i]
		for _, fam := range r.families {
			if f.Family() == fam {
				r.frontend(&out, svc, f)
			}
		}
	}
	return out
}

func (r *renderer) frontend(out *rendered, svc *model.Service, f *model.Frontend) {
	fam, key := f.Family(), elements.FrontendKey(f.Key)
	inside := elementID{Family: fam, Set: setServices, Key: key}
	outside := elementID{Family: fam, Set: setServicesOutside, Key: key}
	nodePort := f.Kind == model.NodePort
	if nodePort {
		inside.Set, outside.Set = setNodePorts, setNodePortsOutside
	} else {
		out.elements.Address(setAddresses, f.Addr)
	}
	same := f.Outside.Equal(f.Inside) && !(nodePort && r.byInterface)
	switch {
	case same && nodePort:
		r.target(out, svc, f, f.Inside, inside, 0)
	case same:
		r.target(out, svc, f, f.Inside, inside, byAddress)
	case nodePort:
		r.target(out, svc, f, f.Inside, inside, markInside)
		r.target(out, svc, f, f.Outside, outside, 0)
	default:
		r.target(out, svc, f, f.Inside, inside, markInside)
		r.target(out, svc, f, f.Outside, outside, byAddress)
	}
	if nodePort && r.loopback && fam == model.IPv4 {
		loopbackPort(out, f)
	}
	out.elements.SourceRanges(f, setRestricted, setSourceRanges)
}

// loopbackSlots is how finely connections from the loopback range are
// distributed.
const loopbackSlots = 64

// loopbackPort gives the endpoints of a NodePort their slots.
func loopbackPort(out *rendered, f *model.Frontend) {
	frontend := elements.FrontendKey(f.Key)
	for at, ep := range loopbackTable(f.Inside) {
		value := append(binary.BigEndian.AppendUint16(ep.Addr().AsSlice(), ep.Port()), 0, 0)
		key := frontend + string(expr.Word(uint32(at)))
		out.elements[elementID{Family: model.IPv4, Set: setLoopbackPorts, Key: key}] = string(value)
	}
}

// loopbackTable has the endpoint of each slot; it is empty without endpoints. All
// those connections are one client's: with affinity there is one endpoint.
func loopbackTable(t *model.Target) (table []netip.AddrPort) {
	endpoints, total, sum := t.Endpoints, 0, 0
	if t.Affinity > 0 && len(endpoints) > 0 {
		endpoints = endpoints[:1]
	}
	for i := range endpoints {
		total += int(endpoints[i].Weight)
	}
	for i := range endpoints {
		for sum += int(endpoints[i].Weight); len(table) < sum*loopbackSlots/total; {
			table = append(table, endpoints[i].AddrPort)
		}
	}
	return table
}

// affinityScheduler is Maglev hashing by the client's address; where the kernel
// lacks it, plain hashing takes its place.
const affinityScheduler, affinityFallback = "mh", "sh"

// byAddress as flags of target: no mark chooses the virtual server.
const byAddress action = markMask

// target adds the virtual server and the action for one view of a frontend.
// One that forwards nothing has a virtual server without real servers: it is
// not created for that, but is kept while connections that it had go on.
func (r *renderer) target(out *rendered, svc *model.Service, f *model.Frontend, t *model.Target, id elementID, flags action) {
	s := &server{
		Settings: ipvs.Settings{Scheduler: r.schedulerOf(svc), Persistence: t.Affinity},
		reals:    make(map[netip.AddrPort]uint32, len(t.Endpoints)),
	}
	key := ipvs.Key{Addr: f.Addr, Port: f.Port, Protocol: uint8(f.Protocol)}
	act := markBase
	if r.masqueradeAll && f.KeepsClient {
		act |= markKeep
	}
	if flags != byAddress {
		act |= flags | r.marks.get(id)
		key = ipvs.Key{Mark: uint32(act), IPv6: id.Family == model.IPv6}
		if t.Affinity > 0 {
			// With persistence a marked virtual server does not translate ports
			// (ip_vs_sched_persist). A consistent hash of the client's address
			// keeps a client with its endpoint too, without a time-out.
			s.Settings = ipvs.Settings{Scheduler: affinityScheduler}
		}
	}
	// dh goes on choosing real servers with weight 0, and then refuses.
	s.atOnce = f.Protocol == model.UDP || s.Scheduler == "dh"
	switch t.Action {
	case model.Reject:
		act = actionReject
	case model.Drop:
		act = actionDrop
	}
	for i := range t.Endpoints {
		e := &t.Endpoints[i]
		s.reals[e.AddrPort] = uint32(e.Weight)
		if e.Local {
			a := string(e.AddrPort.Addr().AsSlice())
			out.elements.Address(setLocalEndpoints, e.AddrPort.Addr())
			out.elements[elementID{Family: id.Family, Set: setHairpin, Key: a + a}] = ""
		}
	}
	out.servers[key] = s
	out.elements[id] = act.data()
}

// schedulerOf is the Service's own, else the node's.
func (r *renderer) schedulerOf(svc *model.Service) string {
	if svc.Scheduler != "" {
		return svc.Scheduler
	}
	return r.scheduler
}

// marks gives every map element that chooses a virtual server by mark an index
// of its own, and the same one as long as the virtual server exists.
type marks struct {
	of    map[elementID]action
	owner map[action]elementID
	next  action
}

func newMarks() *marks {
	return &marks{of: map[elementID]action{}, owner: map[action]elementID{}, next: 1}
}

// get returns an element's index.
func (m *marks) get(id elementID) action {
	if i, ok := m.of[id]; ok {
		return i
	}
	for {
		i := m.next
		m.next++
		if m.next == markIndex {
			m.next = 1
		}
		if _, taken := m.owner[i]; !taken {
			m.of[id], m.owner[i] = i, id
			return i
		}
	}
}

// restore takes over an index that the kernel has for an element.
func (m *marks) restore(id elementID, i action) {
	if _, taken := m.owner[i]; !taken {
		m.of[id], m.owner[i] = i, id
	}
}

// reserve keeps an index from being given: a virtual server still has it.
func (m *marks) reserve(i action) {
	if _, taken := m.owner[i]; !taken {
		m.owner[i] = elementID{}
	}
}

// release frees an index.
func (m *marks) release(i action) {
	if id, ok := m.owner[i]; ok {
		delete(m.owner, i)
		if m.of[id] == i {
			delete(m.of, id)
		}
	}
}
