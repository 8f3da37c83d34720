// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// PortsFunc returns the ports of a Service, for sharing; nil when there is no
// such Service.
type PortsFunc func(alloc.Owner) []provisioner.Port

// sharing is what is asked about others that hold an address: see Config.
type sharing struct {
	ports     PortsFunc
	localPods func(alloc.Owner) string
}

// plan gives an owner what it asks for: keep and drop are assigned to it already,
// assign is not.
type plan struct {
	keep, drop []netip.Addr
	assign     []assignment
	unmet      *provisioner.AllocationError
	enough     bool // what is unmet is not required
}

// assignment is an address to be assigned; with record, which exists, to one more
// owner.
type assignment struct {
	addr   netip.Addr
	pool   string // "" for a reservation in no pool
	record *Record
}

// Reserve plans what req.Owner keeps, gets and drops, and reserves what it gets: until
// Commit or Release of each of plan.assign no other request gets it. Indexes of the
// same objects plan the same, in whatever order the events came. With scatter 0 the
// lowest free address of a range is chosen, else one near that fraction of it, so that
// two controllers that do not see each other do not go on choosing the same.
func (x *Index) Reserve(req provisioner.Request, others sharing, scatter uint64) plan {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := planner{x: x, req: req, sharing: others, assigned: x.assigned(req), scatter: scatter}
	return x.reserve(p.plan(), req.Owner)
}

// ReserveExactly is Reserve for exactly these addresses, which the Service uses
// already: the pool may be disabled or no longer admit it. Of a family of which
// the Service holds one, nothing is reserved: its status is older than that.
func (x *Index) ReserveExactly(req provisioner.Request, addrs []netip.Addr, others sharing) plan {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := planner{x: x, req: req, sharing: others, assigned: x.assigned(req)}
	return x.reserve(p.adoptAll(addrs), req.Owner)
}

func (x *Index) reserve(decided plan, owner alloc.Owner) plan {
	for _, t := range decided.assign {
		x.inFlight[t.addr] = owner
		x.mark(t.addr)
	}
	return decided
}

// Commit ends the reservation of an address with its record as written.
func (x *Index) Commit(r Record) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.put(r)
	x.release(r.Address)
}

// Release ends the reservation of an address that was not written; after Commit
// it does nothing.
func (x *Index) Release(addr netip.Addr) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.release(addr)
}

func (x *Index) release(addr netip.Addr) {
	delete(x.inFlight, addr)
	x.unmark(addr)
}

// assigned returns the addresses of the request's owner, those in its status first.
func (x *Index) assigned(req provisioner.Request) []netip.Addr {
	all := sorted(x.byOwner[nameOf(req.Owner)])
	slices.SortStableFunc(all, func(a, b netip.Addr) int {
		return compareBool(slices.Contains(req.Current, b), slices.Contains(req.Current, a))
	})
	return all
}

// planner decides on one request, with the index locked. It changes nothing in
// the index.
type planner struct {
	x   *Index
	req provisioner.Request
	sharing
	assigned []netip.Addr
	scatter  uint64 // see Index.Reserve

	keep   []netip.Addr
	assign []assignment
	met    map[corev1.IPFamily]bool
	unmet  []*provisioner.AllocationError
}

func (p *planner) adoptAll(addrs []netip.Addr) plan {
	out := plan{keep: p.assigned}
	for _, a := range addrs {
		if slices.ContainsFunc(p.assigned, func(h netip.Addr) bool { return h.BitLen() == a.BitLen() }) {
			continue
		}
		if t, unmet := p.adopt(a); unmet != nil {
			p.unmet = append(p.unmet, unmet)
		} else {
			out.assign = append(out.assign, t)
		}
	}
	out.unmet = merge(p.unmet)
	return out
}

func (p *planner) plan() plan {
	p.met = map[corev1.IPFamily]bool{}
	p.requested()
	asked := len(p.unmet) == 0
	if asked {
		p.choose()
	}
	if !asked || len(p.unmet) > 0 && len(p.met) < p.req.Required() {
		return plan{keep: p.assigned, unmet: merge(p.unmet)}
	}
	out := plan{keep: p.keep, assign: p.assign, unmet: merge(p.unmet), enough: true}
	for _, a := range p.assigned {
		family := alloc.FamilyOf(a)
		switch {
		case slices.Contains(p.keep, a):
		case p.met[family] || !slices.Contains(p.req.Families, family):
			out.drop = append(out.drop, a)
		default:
			out.keep = append(out.keep, a)
		}
	}
	if unmet := p.localConflict(out.keep); unmet != nil {
		out.unmet, out.enough = merge(append(p.unmet, unmet)), false
	}
	return out
}

// requested keeps or assigns every address that is asked for.
func (p *planner) requested() {
	for _, a := range p.req.Addresses {
		if slices.Contains(p.assigned, a) && p.fits(a) {
			p.keep = append(p.keep, a)
		} else if t, unmet := p.assignable(a); unmet != nil {
			p.unmet = append(p.unmet, unmet)
			continue
		} else {
			p.assign = append(p.assign, t)
		}
		p.met[alloc.FamilyOf(a)] = true
	}
}

// choose finds an address for each family without a requested one.
func (p *planner) choose() {
	var need []corev1.IPFamily
	for _, f := range p.req.Families {
		if p.met[f] {
			continue
		}
		if a, ok := p.kept(f); ok {
			p.keep, p.met[f] = append(p.keep, a), true
			continue
		}
		need = append(need, f)
	}
	need = p.assignEach(need, p.recorded)
	need = p.fromOnePool(need)
	need = p.assignEach(need, func(f corev1.IPFamily) (assignment, bool) {
		for _, s := range p.candidates() {
			if t, ok := p.next(s, f); ok {
				return t, true
			}
		}
		return assignment{}, false
	})
	for _, f := range need {
		p.unmet = append(p.unmet, p.noAddress(f))
	}
}

// assignEach assigns what find finds and returns the families without.
func (p *planner) assignEach(need []corev1.IPFamily, find func(corev1.IPFamily) (assignment, bool)) (rest []corev1.IPFamily) {
	for _, f := range need {
		t, ok := find(f)
		if !ok {
			rest = append(rest, f)
			continue
		}
		p.assign, p.met[f] = append(p.assign, t), true
	}
	return rest
}

// kept returns an address of the family that is assigned and still fits.
func (p *planner) kept(f corev1.IPFamily) (netip.Addr, bool) {
	for _, a := range p.assigned {
		if alloc.FamilyOf(a) == f && p.fits(a) && p.inNamedPool(a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// fits reports whether an assigned address may stay: others that share it have to
// have the same key. A pool that changed, or ports that collide, do not matter
// here.
func (p *planner) fits(a netip.Addr) bool {
	r := p.x.records[a]
	return len(r.others(p.req.Owner)) == 0 || r.SharingKey == p.req.SharingKey
}

// inNamedPool reports whether an address satisfies the pool annotation.
func (p *planner) inNamedPool(a netip.Addr) bool {
	if p.req.Pool == "" || p.x.records[a].Pool == p.req.Pool {
		return true
	}
	containing := p.x.poolFor(a)
	return containing != nil && containing.Name == p.req.Pool
}

// recorded finds an address that has a record already: reserved for the Service,
// assigned to it before, or one to share.
func (p *planner) recorded(f corev1.IPFamily) (assignment, bool) {
	name := nameOf(p.req.Owner)
	for _, from := range []struct {
		set  addrSet
		auto bool // only from pools that would serve the request by themselves
	}{{p.x.reservedFor[name], false}, {p.x.releasedBy[name], true}, {p.shareable(), false}} {
		for _, a := range sorted(from.set) {
			if alloc.FamilyOf(a) != f || slices.Contains(p.assigned, a) || !p.inNamedPool(a) {
				continue
			}
			if from.auto && !p.serves(p.x.poolFor(a)) {
				continue
			}
			if t, unmet := p.assignable(a); unmet == nil {
				return t, true
			}
		}
	}
	return assignment{}, false
}

func (p *planner) serves(s *poolState) bool {
	if s == nil {
		return false
	}
	_, ok := p.excuse(s)
	return ok
}

func (p *planner) shareable() addrSet {
	if p.req.SharingKey == "" {
		return nil
	}
	return p.x.bySharingKey[p.req.SharingKey]
}

// fromOnePool assigns all families that are needed from the first pool that has
// them, or that an address kept comes from.
func (p *planner) fromOnePool(need []corev1.IPFamily) []corev1.IPFamily {
	if len(need) == 0 || len(p.req.Families) < 2 {
		return need
	}
	pools := p.candidates()
	if len(p.keep) > 0 && len(need) == 1 {
		containing := p.x.poolFor(p.keep[0])
		pools = slices.DeleteFunc(pools, func(s *poolState) bool { return s != containing })
	} else if len(need) < 2 {
		return need
	}
	for _, s := range pools {
		var all []assignment
		for _, f := range need {
			if t, ok := p.next(s, f); ok {
				all = append(all, t)
			}
		}
		if len(all) == len(need) {
			return p.assignEach(need, func(f corev1.IPFamily) (assignment, bool) { return p.next(s, f) })
		}
	}
	return need
}

// candidates are the pools to choose from, best first; the slice is the
// caller's.
func (p *planner) candidates() []*poolState {
	var out []*poolState
	for _, s := range p.x.order {
		if p.serves(s) {
			out = append(out, s)
		}
	}
	return out
}

// excuse says why a pool does not serve the request; true when it does.
func (p *planner) excuse(s *poolState) (string, bool) {
	switch {
	case p.req.Pool != "" && s.Name != p.req.Pool:
		return "is not the one asked for", false
	case s.Disabled:
		return "is disabled", false
	case p.req.Pool == "" && !s.AutoAssign:
		return "has autoAssign: false", false
	}
	if which, ok := s.admits(p.req); !ok {
		return "does not admit the Service by its " + which, false
	}
	return "", true
}

// next is the pool's next free address of a family, if the Service may have one
// more.
func (p *planner) next(s *poolState, f corev1.IPFamily) (assignment, bool) {
	if _, over := p.overLimit(s, f, false); over {
		return assignment{}, false
	}
	return s.next(f, p.scatter)
}

// overLimit says which bound of the pool keeps the Service from one more address
// of a family. Addresses that it alone holds and that it does not keep make room.
// One that others of its namespace have already is no more for that.
func (p *planner) overLimit(s *poolState, f corev1.IPFamily, shared bool) (string, bool) {
	mine := func(a netip.Addr) bool { return alloc.FamilyOf(a) == f && s.Contains(a) }
	service, kept := 0, 0
	for _, a := range p.keep {
		if s.Contains(a) {
			service++
		}
		if mine(a) {
			kept++
		}
	}
	for _, t := range p.assign {
		if s.Contains(t.addr) {
			service++
		}
		if mine(t.addr) {
			kept++
		}
	}
	if s.MaxPerService > 0 && service >= s.MaxPerService {
		return fmt.Sprintf("the Service has %d addresses of pool %s, as many as its maxPerService allows", service, s.Name), true
	}
	if s.MaxPerNamespace == 0 || shared {
		return "", false
	}
	namespace := p.req.Owner.Namespace
	others := s.perNamespace[tenant{namespace, f}]
	for _, a := range p.assigned {
		r := p.x.records[a]
		if mine(a) && !inNamespace(r.others(p.req.Owner), namespace) {
			others--
		}
	}
	for a, o := range p.x.inFlight {
		r := p.x.records[a]
		if o.Namespace == namespace && !o.Is(p.req.Owner) && mine(a) && !inNamespace(r.Owners, namespace) {
			others++
		}
	}
	if others+kept >= s.MaxPerNamespace {
		return fmt.Sprintf("namespace %s has %d %s addresses of pool %s, as many as its maxPerNamespace allows", namespace, others+kept, f, s.Name), true
	}
	return "", false
}

// next is the pool's next free address of a family.
func (s *poolState) next(f corev1.IPFamily, scatter uint64) (assignment, bool) {
	for _, last := range []bool{false, true} {
		for _, sp := range s.bitmaps {
			if alloc.FamilyOf(sp.in.First) != f {
				continue
			}
			if a, ok := sp.find(scatter, last); ok {
				return assignment{addr: a, pool: s.Name}, true
			}
		}
	}
	return assignment{}, false
}
