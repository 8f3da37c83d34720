// SPDX-License-Identifier: Apache-2.0

package services

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// remainder is the pool of what the cluster has and no pool: the name is one that
// no object can have.
const remainder = "(cluster)"

// subject is what pools look at in a Service.
type subject struct {
	owner                   alloc.Owner
	labels, namespaceLabels labels.Set
}

// selectors say which Services may use a pool.
type selectors struct {
	name               string
	generation         int64
	priority           int32
	namespace, service labels.Selector
}

// readSelectors returns selectors that select nothing when they cannot be read,
// with an error.
func readSelectors(pool metav1.ObjectMeta, priority int32, namespace, service *metav1.LabelSelector) (selectors, error) {
	s := selectors{name: pool.Name, generation: pool.Generation, priority: priority, namespace: labels.Nothing(), service: labels.Nothing()}
	ns, err := selector(namespace)
	if err != nil {
		return s, fmt.Errorf("namespaceSelector: %w", err)
	}
	svc, err := selector(service)
	if err != nil {
		return s, fmt.Errorf("serviceSelector: %w", err)
	}
	s.namespace, s.service = ns, svc
	return s, nil
}

// selector differs from LabelSelectorAsSelector in that nil selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// selects reports whether a Service may use the pool.
func (s selectors) selects(who subject) bool {
	return s.namespace.Matches(who.namespaceLabels) && s.service.Matches(who.labels)
}

// before orders pools: by priority, those with selectors first, by name.
func (s selectors) before(t selectors) int {
	open := func(s selectors) int {
		if s.namespace.Empty() && s.service.Empty() {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(t.priority, s.priority), cmp.Compare(open(s), open(t)), cmp.Compare(s.name, t.name))
}

// policy is a pool: its values, without any if it has none of the kind, and who
// may use them.
type policy[V comparable] struct {
	selectors
	alloc.Pool[V]
	reserved []alloc.Span[V] // granted only on request, and not even then to others
}

// pools are those of one kind of value, in the order in which they are asked.
type pools[V comparable] struct {
	kind     alloc.Kind[V]
	resource string // "ClusterIPPool"
	list     []policy[V]
}

// set replaces the policy of that name.
func (ps *pools[V]) set(p policy[V]) {
	ps.remove(p.name)
	ps.list = append(ps.list, p)
	slices.SortFunc(ps.list, func(a, b policy[V]) int { return a.before(b.selectors) })
}

func (ps *pools[V]) remove(name string) {
	ps.list = slices.DeleteFunc(ps.list, func(p policy[V]) bool { return p.name == name })
}

func (ps *pools[V]) knows(name string, generation int64) bool {
	return slices.ContainsFunc(ps.list, func(p policy[V]) bool { return p.name == name && p.generation >= generation })
}

// serving returns the names of the pools that select the Service, in the order in
// which they are asked.
func (ps *pools[V]) serving(who subject) (names []string) {
	for _, p := range ps.list {
		if len(p.Spans) > 0 && p.selects(who) {
			names = append(names, p.name)
		}
	}
	return names
}

// having returns the names of the pools that have the value, and whether one of
// them selects the Service.
func (ps *pools[V]) having(v V, who subject) (names []string, mine bool) {
	for _, p := range ps.list {
		if ps.in(p.Spans, v) {
			names, mine = append(names, p.name), mine || p.selects(who)
		}
	}
	return names, mine
}

// reserving returns the names of the pools in which the value is reserved.
func (ps *pools[V]) reserving(v V) (names []string) {
	for _, p := range ps.list {
		if ps.in(p.reserved, v) {
			names = append(names, p.name)
		}
	}
	return names
}

func (ps *pools[V]) in(spans []alloc.Span[V], v V) bool {
	return slices.ContainsFunc(spans, func(s alloc.Span[V]) bool { return ps.kind.Contains(s, v) })
}

// values is one kind of value with its pools and allocations.
type values[V comparable] struct {
	pools[V]
	*alloc.Allocations[V]
	what string // "ClusterIP"
	// unrecorded says that the API has no record of a value in use apart from the
	// Services, so that a suspect value cannot be looked at.
	unrecorded bool
	// available are the values that the API server allocates from, if that is known;
	// of these, unfit are not granted without being asked for.
	available, unfit []alloc.Span[V]
	known            bool
	band             func(capacity uint64) uint64
}

func newValues[V comparable](kind alloc.Kind[V], what, resource string, band func(uint64) uint64) *values[V] {
	return &values[V]{pools: pools[V]{kind: kind, resource: resource}, Allocations: alloc.New(kind), what: what, band: band}
}

// setPool replaces a pool. Values that the API server would refuse are not
// granted.
func (v *values[V]) setPool(p policy[V]) {
	v.set(p)
	v.update(p)
	v.updateRemainder()
}

func (v *values[V]) deletePool(name string) {
	v.remove(name)
	v.DeletePool(name)
	v.updateRemainder()
}

func (v *values[V]) setAvailable(known bool, available, unfit []alloc.Span[V]) {
	v.known, v.available, v.unfit = known, available, unfit
	for _, p := range v.list {
		v.update(p)
	}
	v.updateRemainder()
}

func (v *values[V]) update(p policy[V]) {
	if len(p.Spans) == 0 {
		v.DeletePool(p.name)
		return
	}
	pool := p.Pool
	pool.Name, pool.Exclude = p.name, slices.Concat(p.Exclude, p.reserved, v.unfit, v.outside(p))
	v.SetPool(pool)
}

// updateRemainder keeps the pool of what belongs to no pool.
func (v *values[V]) updateRemainder() {
	var taken []alloc.Span[V]
	for _, p := range v.list {
		taken = append(taken, p.Spans...)
	}
	spans := v.kind.Subtract(v.available, taken)
	if len(v.list) == 0 || len(spans) == 0 {
		v.DeletePool(remainder)
		return
	}
	v.SetPool(alloc.Pool[V]{Name: remainder, Spans: spans, Exclude: v.unfit, LowerBand: v.band})
}

// outside returns the parts of a pool that the API server does not allocate from;
// none when it is not known what it does.
func (v *values[V]) outside(p policy[V]) []alloc.Span[V] {
	if !v.known {
		return nil
	}
	return v.kind.Subtract(p.Spans, v.available)
}

// PoolState is what is known of one kind of value of a pool.
type PoolState struct {
	alloc.Stats
	// Overlaps is what the pool shares with other pools of its kind, and Outside
	// what the API server does not allocate from, as text, in order.
	Overlaps, Outside []string
}

func (v *values[V]) state(name string) PoolState {
	out := PoolState{Stats: v.Stats(name)}
	mine := alloc.Named[V]{Name: name}
	var others []alloc.Named[V]
	for _, p := range v.list {
		if p.name != name {
			others = append(others, alloc.Named[V]{Name: p.name, Spans: p.Spans})
			continue
		}
		mine.Spans = p.Spans
		for _, s := range v.outside(p) {
			out.Outside = append(out.Outside, v.kind.Text(s))
		}
	}
	out.Overlaps = v.kind.Overlaps(mine, others)
	return out
}

// SetClusterIPPool adds or replaces a pool. Ranges that cannot be read are left
// out and named in the error; the others are used. A pool whose selectors cannot
// be read selects nothing, and no other Service gets its values.
func (a *Allocations) SetClusterIPPool(pool *v1alpha1.ClusterIPPool) error {
	s, bad := readSelectors(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	ranges, err := alloc.ParseRanges("ranges", pool.Spec.Ranges)
	for family, v := range a.addresses {
		p := policy[netip.Addr]{selectors: s, Pool: poolOf[netip.Addr](pool.Spec.StaticBand, v.band, pool.Spec.Quarantine, pool.Spec.MaxPerNamespace)}
		p.Spans, p.Exclude = alloc.SpansOf(ranges, family), append(alloc.EndsOf(ranges, family), alloc.SpecialOf(family)...)
		v.setPool(p)
	}
	return errors.Join(bad, err)
}

// SetNodePortPool is SetClusterIPPool for ports.
func (a *Allocations) SetNodePortPool(pool *v1alpha1.NodePortPool) error {
	s, bad := readSelectors(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	p := policy[uint16]{selectors: s, Pool: poolOf[uint16](pool.Spec.StaticBand, a.ports.band, pool.Spec.Quarantine, pool.Spec.MaxPerNamespace)}
	errs := []error{bad, nil, nil}
	p.Spans, errs[1] = alloc.ParsePortRanges("ranges", pool.Spec.Ranges)
	p.reserved, errs[2] = alloc.ParsePortRanges("reservedPorts", pool.Spec.ReservedPorts)
	a.ports.setPool(p)
	return errors.Join(errs...)
}

// SetLoadBalancerPool says which addresses only certain Services may have as
// external IPs. They are granted elsewhere.
func (a *Allocations) SetLoadBalancerPool(pool *v1alpha1.LoadBalancerPool) error {
	s, bad := readSelectors(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	ranges, err := alloc.ParseRanges("addresses", pool.Spec.Addresses)
	for family, ps := range a.loadBalancer {
		ps.set(policy[netip.Addr]{selectors: s, Pool: alloc.Pool[netip.Addr]{Spans: alloc.SpansOf(ranges, family)}})
	}
	return errors.Join(bad, err)
}

func poolOf[V any](band *int32, usual func(uint64) uint64, quarantine *metav1.Duration, limit *int32) alloc.Pool[V] {
	p := alloc.Pool[V]{LowerBand: usual}
	if band != nil {
		p.LowerBand = func(capacity uint64) uint64 { return min(uint64(*band), capacity) }
	}
	if quarantine != nil {
		p.Quarantine = quarantine.Duration
	}
	if limit != nil {
		p.MaxPerNamespace = int(*limit)
	}
	return p
}

// DeleteClusterIPPool forgets a pool; Services keep what they have.
func (a *Allocations) DeleteClusterIPPool(name string) {
	for _, v := range a.addresses {
		v.deletePool(name)
	}
}

// DeleteNodePortPool is DeleteClusterIPPool for ports.
func (a *Allocations) DeleteNodePortPool(name string) { a.ports.deletePool(name) }

// DeleteLoadBalancerPool forgets such a pool.
func (a *Allocations) DeleteLoadBalancerPool(name string) {
	for _, ps := range a.loadBalancer {
		ps.remove(name)
	}
}

// SetServiceCIDRs says which addresses the API server allocates from. It costs a
// step for each allocation and pool, unless they are as before.
func (a *Allocations) SetServiceCIDRs(cidrs []netip.Prefix) {
	var ranges []alloc.Range
	for _, c := range cidrs {
		if r, err := alloc.ParseRange(c.Masked().String()); err == nil {
			ranges = append(ranges, r)
		}
	}
	if slices.Equal(ranges, a.cidrs) {
		return
	}
	a.cidrs = ranges
	for family, v := range a.addresses {
		v.setAvailable(len(ranges) > 0, alloc.SpansOf(ranges, family), alloc.EndsOf(ranges, family))
	}
}

// KnowsClusterIPPool reports whether this generation of a pool was set.
func (a *Allocations) KnowsClusterIPPool(pool string, generation int64) bool {
	return a.addresses[corev1.IPv4Protocol].knows(pool, generation)
}

// KnowsNodePortPool is KnowsClusterIPPool for a NodePortPool.
func (a *Allocations) KnowsNodePortPool(pool string, generation int64) bool {
	return a.ports.knows(pool, generation)
}

// KnowsLoadBalancerPool is KnowsClusterIPPool for a LoadBalancerPool.
func (a *Allocations) KnowsLoadBalancerPool(pool string, generation int64) bool {
	return a.loadBalancer[corev1.IPv4Protocol].knows(pool, generation)
}

// ClusterIPPool returns the state of a family of a pool. What is over by now is
// not counted.
func (a *Allocations) ClusterIPPool(name string, family corev1.IPFamily, now time.Time) PoolState {
	a.Expire(now)
	return a.addresses[family].state(name)
}

// NodePortPool is ClusterIPPool for a NodePortPool.
func (a *Allocations) NodePortPool(name string, now time.Time) PoolState {
	a.Expire(now)
	return a.ports.state(name)
}

// InUse reports whether a Service has an address of the prefix, or is just being
// granted one.
func (a *Allocations) InUse(p netip.Prefix) bool {
	for allocation := range a.addresses[alloc.FamilyOf(p.Addr())].All() {
		if allocation.State >= alloc.Pending && p.Contains(allocation.Value) {
			return true
		}
	}
	return false
}
