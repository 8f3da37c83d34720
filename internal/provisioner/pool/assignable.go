// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/quote"
)

// maxSharers is how many Services one record lists.
const maxSharers = 256

// assignable returns how this very address could be assigned, or why not.
func (p *planner) assignable(a netip.Addr) (assignment, *provisioner.AllocationError) {
	t, unmet := p.adopt(a)
	if unmet != nil {
		return assignment{}, unmet
	}
	if containing := p.x.poolFor(a); containing != nil {
		unmet = p.admit(containing, a, t.record)
	}
	return t, unmet
}

// adopt is assignable without asking the pool.
func (p *planner) adopt(a netip.Addr) (assignment, *provisioner.AllocationError) {
	t := assignment{addr: a}
	if r, ok := p.x.records[a]; ok {
		t.record = &r
		if unmet := p.join(r); unmet != nil {
			return assignment{}, unmet
		}
	}
	if _, inFlight := p.x.inFlight[a]; inFlight {
		return assignment{}, addressError(provisioner.ReasonAddressInUse, a, "%s is being given to another Service: ask for another address", a)
	}
	if containing := p.x.poolFor(a); containing != nil {
		t.pool = containing.Name
	} else if t.record == nil || !t.record.Reserved {
		return assignment{}, p.outsideError(a)
	}
	return t, nil
}

// join says why a record cannot be this Service's (too).
func (p *planner) join(r Record) *provisioner.AllocationError {
	if r.ReservedFor.Name != "" && !r.ReservedFor.Is(p.req.Owner) {
		return addressError(provisioner.ReasonAddressNotAllowed, r.Address,
			"%s is reserved for %s: ask for another address, or change spec.reservedFor of LoadBalancerAddress %s",
			r.Address, p.named(r.ReservedFor), v1alpha1.LoadBalancerAddressName(r.Address))
	}
	others := r.others(p.req.Owner)
	switch {
	case len(others) == 0:
		return nil
	case !inNamespace(others, p.req.Owner.Namespace) && !p.sharedByAll(r.Address):
		return addressError(provisioner.ReasonAddressInUse, r.Address,
			"%s is held by %s: ask for another address (a sharing key counts in one namespace, unless the pool has sharing: Cluster)",
			r.Address, p.named(others[0]))
	case p.req.SharingKey == "" || r.SharingKey == "":
		return addressError(provisioner.ReasonAddressInUse, r.Address,
			"%s is held by %s: ask for another address, or give both Services the same value of annotation %s and different ports",
			r.Address, p.named(others[0]), v1alpha1.SharingKeyAnnotation)
	case p.req.SharingKey != r.SharingKey:
		return addressError(provisioner.ReasonSharingNotAllowed, r.Address,
			"%s is held by %s with another sharing key: give both the same value of annotation %s, or ask for another address",
			r.Address, p.named(others[0]), v1alpha1.SharingKeyAnnotation)
	case len(others) >= maxSharers:
		return addressError(provisioner.ReasonSharingNotAllowed, r.Address,
			"%s is shared by %d Services, the most there can be: use another address or sharing key", r.Address, len(others))
	}
	if other, apart := p.podsElsewhere(others); apart {
		return addressError(provisioner.ReasonSharingNotAllowed, r.Address,
			"%s is held by %s, which has externalTrafficPolicy: Local and other Pods, and kube-proxy serves the Pods of one node only: "+
				"use externalTrafficPolicy: Cluster for one of them, the same Pods, or another address or sharing key", r.Address, p.named(other))
	}
	if other, port, conflict := portConflict(p.req.Ports, others, p.ports); conflict {
		return addressError(provisioner.ReasonSharingNotAllowed, r.Address,
			"port %d/%s of %s is taken by %s, which shares the address: use another port, address or sharing key",
			port.Port, port.Protocol, r.Address, p.named(other))
	}
	return nil
}

// named names another Service to this one's owner, who is not told of those of
// other namespaces.
func (p *planner) named(o alloc.Owner) string {
	if o.Namespace != p.req.Owner.Namespace {
		return "a Service of another namespace"
	}
	return "Service " + o.String()
}

// sharedByAll reports whether Services of several namespaces may share the address.
func (p *planner) sharedByAll(a netip.Addr) bool {
	containing := p.x.poolFor(a)
	return containing != nil && containing.SharedByAll
}

// localConflict reports that addresses which the Service keeps were shared first by others
// that have policy Local and other Pods, as came about by a change of either:
// what comes is dropped for one of them. Who came first is not told.
func (p *planner) localConflict(keep []netip.Addr) *provisioner.AllocationError {
	var all []*provisioner.AllocationError
	for _, a := range keep {
		owners := p.x.records[a].Owners
		first := slices.IndexFunc(owners, p.req.Owner.Is)
		if first <= 0 {
			continue
		}
		if other, apart := p.podsElsewhere(owners[:first]); apart {
			all = append(all, addressError(provisioner.ReasonSharingNotAllowed, a,
				"%s is shared with %s, which has externalTrafficPolicy: Local and other Pods by now, and kube-proxy serves the Pods of one node only: "+
					"use externalTrafficPolicy: Cluster for one of them, the same Pods, or another sharing key", a, p.named(other)))
		}
	}
	return merge(all)
}

// podsElsewhere finds one of the others whose Pods cannot be reached from the nodes
// that this Service's policy leaves.
func (p *planner) podsElsewhere(others []alloc.Owner) (alloc.Owner, bool) {
	if p.localPods == nil || p.req.LocalPods == "" {
		return alloc.Owner{}, false
	}
	for _, o := range others {
		if pods := p.localPods(o); pods != "" && pods != p.req.LocalPods {
			return o, true
		}
	}
	return alloc.Owner{}, false
}

// portConflict finds the first of ports that one of the others has.
func portConflict(ports []provisioner.Port, others []alloc.Owner, of PortsFunc) (alloc.Owner, provisioner.Port, bool) {
	for _, o := range others {
		for _, port := range of(o) {
			if slices.Contains(ports, port) {
				return o, port, true
			}
		}
	}
	return alloc.Owner{}, provisioner.Port{}, false
}

// admit returns why the address's pool does not give it to the Service.
func (p *planner) admit(containing *poolState, a netip.Addr, record *Record) *provisioner.AllocationError {
	reservedForIt := record != nil && record.ReservedFor.Name != ""
	if p.req.Pool != "" && containing.Name != p.req.Pool {
		return &provisioner.AllocationError{Reason: provisioner.ReasonInvalidRequest, Message: fmt.Sprintf(
			"%s belongs to pool %s, but annotation %s asks for pool %s: change one of them", a, containing.Name, v1alpha1.PoolAnnotation, quote.Name(p.req.Pool))}
	}
	if containing.Disabled {
		return addressError(provisioner.ReasonAddressNotAllowed, a, "%s belongs to pool %s, which is disabled: enable it or ask for another address", a, containing.Name)
	}
	if which, ok := containing.admits(p.req); !ok && !reservedForIt {
		return addressError(provisioner.ReasonAddressNotAllowed, a,
			"%s belongs to pool %s, whose %s does not admit the Service: change the labels or ask for another address", a, containing.Name, which)
	}
	shared := record != nil && inNamespace(record.others(p.req.Owner), p.req.Owner.Namespace)
	if why, over := p.overLimit(containing, alloc.FamilyOf(a), shared); over && !reservedForIt {
		return p.limitError(containing, alloc.FamilyOf(a), why)
	}
	for _, e := range containing.excluded {
		if addresses.Contains(e.Range, a) {
			return addressError(provisioner.ReasonAddressNotAllowed, a,
				"%s is in pool %s but belongs to %s too: ask for another address, or take %s out of the pool", a, containing.Name, e.Why, addresses.Text(e.Range))
		}
	}
	return nil
}

// limitError waits for an address of the pool that its namespace gives back.
func (p *planner) limitError(s *poolState, f corev1.IPFamily, why string) *provisioner.AllocationError {
	return &provisioner.AllocationError{Reason: provisioner.ReasonLimit, Families: []corev1.IPFamily{f},
		Full:    []provisioner.FullPool{{Pool: s.Name, Family: f}},
		Message: fmt.Sprintf("%s: delete Services that no longer need theirs, ask for fewer, or have an administrator raise it", upperFirst(why))}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func (p *planner) outsideError(a netip.Addr) *provisioner.AllocationError {
	return addressError(provisioner.ReasonOutsidePools, a,
		"%s is in no LoadBalancerPool: ask for an address of %s, or add it to a pool", a, p.ranges(alloc.FamilyOf(a)))
}

// ranges lists a few ranges of a family, for messages.
func (p *planner) ranges(f corev1.IPFamily) string {
	var out []string
	for _, s := range p.x.order {
		for _, r := range s.Ranges {
			if alloc.FamilyOf(r.First) == f {
				out = append(out, fmt.Sprintf("%s (pool %s)", addresses.Text(r), s.Name))
			}
		}
	}
	if len(out) == 0 {
		return fmt.Sprintf("a pool (there is none with %s addresses)", f)
	}
	return quote.List(out)
}

// noAddress returns why no pool has an address of the family for the request.
func (p *planner) noAddress(f corev1.IPFamily) *provisioner.AllocationError {
	var excuses, exhausted, limits []string
	var full []provisioner.FullPool
	named := false
	for _, s := range p.x.order {
		if p.req.Pool != "" && s.Name != p.req.Pool {
			continue
		}
		named = true
		why, serves := p.excuse(s)
		switch {
		case !serves:
			excuses = append(excuses, fmt.Sprintf("%s %s", s.Name, why))
		case !s.has(f):
			excuses = append(excuses, fmt.Sprintf("%s has no %s addresses", s.Name, f))
		default:
			if limit, over := p.overLimit(s, f, false); over {
				limits = append(limits, limit)
			} else {
				exhausted = append(exhausted, s.exhausted(f))
			}
			full = append(full, provisioner.FullPool{Pool: s.Name, Family: f})
		}
	}
	r := &provisioner.AllocationError{Reason: provisioner.ReasonNoPool, Families: []corev1.IPFamily{f}, Full: full}
	switch {
	case len(exhausted) > 0:
		r.Reason = provisioner.ReasonPoolExhausted
		r.Message = fmt.Sprintf("No free %s address: %s. Add addresses to a pool or delete Services that no longer need theirs; one that is freed is given to this Service", f, quote.List(exhausted))
	case len(limits) > 0:
		r.Reason = provisioner.ReasonLimit
		r.Message = fmt.Sprintf("No %s address: %s. Delete Services that no longer need theirs, or have an administrator raise it", f, quote.List(limits))
	case p.req.Pool != "" && !named:
		r.Message = fmt.Sprintf("There is no LoadBalancerPool %s: create it, or change annotation %s", quote.Name(p.req.Pool), v1alpha1.PoolAnnotation)
	case len(excuses) > 0:
		r.Message = fmt.Sprintf("No LoadBalancerPool gives this Service an %s address: pool %s. Change a pool, or the Service's labels or annotations", f, quote.List(excuses))
	default:
		r.Message = fmt.Sprintf("No LoadBalancerPool has %s addresses: create one", f)
	}
	return r
}

// exhausted describes a full pool.
func (s *poolState) exhausted(f corev1.IPFamily) string {
	c := s.counts[f]
	text := fmt.Sprintf("pool %s has %d assigned", s.Name, c[inUse])
	if c[reserved] > 0 {
		text += fmt.Sprintf(", %d reserved", c[reserved])
	}
	if c[quarantined] > 0 {
		text += fmt.Sprintf(", %d in quarantine", c[quarantined])
	}
	return text
}

// addressError is an AllocationError that the address, once free, may end.
func addressError(reason string, a netip.Addr, format string, args ...any) *provisioner.AllocationError {
	return &provisioner.AllocationError{Reason: reason, Addresses: []netip.Addr{a}, Message: fmt.Sprintf(format, args...)}
}

// merge makes one AllocationError of several: the first one's reason, all messages.
func merge(all []*provisioner.AllocationError) *provisioner.AllocationError {
	if len(all) == 0 {
		return nil
	}
	out := *all[0]
	for _, r := range all[1:] {
		out.Message += "; " + r.Message
		out.Addresses = slices.Concat(out.Addresses, r.Addresses)
		out.Families = slices.Concat(out.Families, r.Families)
		out.Full = slices.Concat(out.Full, r.Full)
	}
	return &out
}
