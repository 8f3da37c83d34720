// SPDX-License-Identifier: Apache-2.0

package book

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

// rest is the pool of what the cluster has and no pool: the name is one that no
// object can have.
const rest = "(cluster)"

// policy says who may use a pool.
type policy struct {
	name               string
	generation         int64
	priority           int32
	namespace, service labels.Selector
	spans4, spans6     []alloc.Span[netip.Addr]
	ports, reserved    []alloc.PortRange
}

// newPolicy returns a policy that selects nothing when a selector cannot be
// read, and says so.
func newPolicy(pool metav1.ObjectMeta, priority int32, namespace, service *metav1.LabelSelector) (policy, error) {
	p := policy{name: pool.Name, generation: pool.Generation, priority: priority, namespace: labels.Nothing(), service: labels.Nothing()}
	ns, err := selector(namespace)
	if err != nil {
		return p, fmt.Errorf("namespaceSelector: %w", err)
	}
	svc, err := selector(service)
	if err != nil {
		return p, fmt.Errorf("serviceSelector: %w", err)
	}
	p.namespace, p.service = ns, svc
	return p, nil
}

// selector differs from LabelSelectorAsSelector in that nil selects everything.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// selects tells whether a Service may use the pool.
func (p policy) selects(who subject) bool {
	return p.namespace.Matches(who.namespaceLabels) && p.service.Matches(who.labels)
}

func (p policy) spans(family corev1.IPFamily) []alloc.Span[netip.Addr] {
	if family == corev1.IPv4Protocol {
		return p.spans4
	}
	return p.spans6
}

// subject is what pools look at in a Service.
type subject struct {
	owner                   alloc.Owner
	labels, namespaceLabels labels.Set
}

// before orders pools: by priority, those with selectors first, by name.
func (p policy) before(q policy) int {
	open := func(p policy) int {
		if p.namespace.Empty() && p.service.Empty() {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(q.priority, p.priority), cmp.Compare(open(p), open(q)), cmp.Compare(p.name, q.name))
}

// put replaces the policy of that name, in order.
func put(policies []policy, p policy) []policy {
	policies = append(without(policies, p.name), p)
	slices.SortFunc(policies, policy.before)
	return policies
}

func without(policies []policy, name string) []policy {
	return slices.DeleteFunc(slices.Clone(policies), func(p policy) bool { return p.name == name })
}

// SetClusterIPPool adds or replaces a pool. Ranges that cannot be read are left
// out and named in the error; the others are used. A pool whose selectors cannot
// be read selects nothing and is kept from everybody.
func (b *Book) SetClusterIPPool(pool *v1alpha1.ClusterIPPool) error {
	p, bad := newPolicy(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	ranges, err := alloc.ParseRanges("ranges", pool.Spec.Ranges)
	p.spans4, p.spans6 = alloc.SpansOf(ranges, corev1.IPv4Protocol), alloc.SpansOf(ranges, corev1.IPv6Protocol)
	b.clusterIP = put(b.clusterIP, p)
	b.specs[pool.Name] = pool
	b.setPoolOfAddresses(pool, p, ranges)
	b.setRestOfAddresses()
	return errors.Join(bad, err)
}

// setPoolOfAddresses brings the ledgers up to date with a pool. Addresses that
// the API server would refuse, because they lie in none of its ServiceCIDRs,
// are not given out.
func (b *Book) setPoolOfAddresses(pool *v1alpha1.ClusterIPPool, p policy, ranges []alloc.Range) {
	for family, ledger := range b.addresses {
		if len(p.spans(family)) == 0 {
			ledger.DeletePool(pool.Name)
			continue
		}
		ledger.SetPool(alloc.Pool[netip.Addr]{
			Name:            pool.Name,
			Spans:           p.spans(family),
			Exclude:         slices.Concat(alloc.EndsOf(ranges, family), alloc.EndsOf(b.cidrs, family), b.outside(p, family), alloc.SpecialOf(family)),
			LowerBand:       band(pool.Spec.StaticBand, alloc.ServiceIPBand),
			Quarantine:      quarantine(pool.Spec.Quarantine),
			MaxPerNamespace: limit(pool.Spec.MaxPerNamespace),
		})
	}
}

// outside returns the parts of a pool that lie in no ServiceCIDR; none when the
// cluster does not tell what it allocates from.
func (b *Book) outside(p policy, family corev1.IPFamily) []alloc.Span[netip.Addr] {
	if len(b.cidrs) == 0 {
		return nil
	}
	return alloc.Addresses().Subtract(p.spans(family), alloc.SpansOf(b.cidrs, family))
}

// DeleteClusterIPPool forgets a pool; Services keep what they have.
func (b *Book) DeleteClusterIPPool(name string) {
	b.clusterIP = without(b.clusterIP, name)
	delete(b.specs, name)
	for _, ledger := range b.addresses {
		ledger.DeletePool(name)
	}
	b.setRestOfAddresses()
}

// outsidePorts returns the parts of a pool that the API server gives to nobody.
func (b *Book) outsidePorts(p policy) []alloc.PortRange {
	return alloc.Ports().Subtract(p.ports, []alloc.PortRange{b.config.NodePorts})
}

// SetNodePortPool is SetClusterIPPool for ports: those outside the API server's
// range are not given out.
func (b *Book) SetNodePortPool(pool *v1alpha1.NodePortPool) error {
	p, bad := newPolicy(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	errs := []error{bad, nil, nil}
	p.ports, errs[1] = alloc.ParsePortRanges("ranges", pool.Spec.Ranges)
	p.reserved, errs[2] = alloc.ParsePortRanges("reservedPorts", pool.Spec.ReservedPorts)
	b.nodePort = put(b.nodePort, p)
	b.ports.SetPool(alloc.Pool[uint16]{
		Name:            pool.Name,
		Spans:           p.ports,
		Exclude:         slices.Concat(p.reserved, b.outsidePorts(p)),
		LowerBand:       band(pool.Spec.StaticBand, alloc.NodePortBand),
		Quarantine:      quarantine(pool.Spec.Quarantine),
		MaxPerNamespace: limit(pool.Spec.MaxPerNamespace),
	})
	b.setRestOfPorts()
	return errors.Join(errs...)
}

// DeleteNodePortPool is DeleteClusterIPPool for ports.
func (b *Book) DeleteNodePortPool(name string) {
	b.nodePort = without(b.nodePort, name)
	b.ports.DeletePool(name)
	b.setRestOfPorts()
}

// SetLoadBalancerPool tells which addresses only certain Services may have as
// external IPs. They are given out elsewhere.
func (b *Book) SetLoadBalancerPool(pool *v1alpha1.LoadBalancerPool) error {
	p, bad := newPolicy(pool.ObjectMeta, pool.Spec.Priority, pool.Spec.NamespaceSelector, pool.Spec.ServiceSelector)
	ranges, err := alloc.ParseRanges("addresses", pool.Spec.Addresses)
	p.spans4, p.spans6 = alloc.SpansOf(ranges, corev1.IPv4Protocol), alloc.SpansOf(ranges, corev1.IPv6Protocol)
	b.loadBalancer = put(b.loadBalancer, p)
	return errors.Join(bad, err)
}

// DeleteLoadBalancerPool forgets such a pool.
func (b *Book) DeleteLoadBalancerPool(name string) { b.loadBalancer = without(b.loadBalancer, name) }

// SetServiceCIDRs says which addresses the API server allocates from. It costs a
// step for each lease and pool, unless they are as before.
func (b *Book) SetServiceCIDRs(cidrs []netip.Prefix) {
	var ranges []alloc.Range
	for _, c := range cidrs {
		if r, err := alloc.ParseRange(c.Masked().String()); err == nil {
			ranges = append(ranges, r)
		}
	}
	if slices.Equal(ranges, b.cidrs) {
		return
	}
	b.cidrs = ranges
	for _, p := range b.clusterIP {
		ranges, _ := alloc.ParseRanges("ranges", b.specs[p.name].Spec.Ranges) // SetClusterIPPool told of errors
		b.setPoolOfAddresses(b.specs[p.name], p, ranges)
	}
	b.setRestOfAddresses()
}

// setRestOfAddresses keeps the pool of what belongs to no pool.
func (b *Book) setRestOfAddresses() {
	for family, ledger := range b.addresses {
		var taken []alloc.Span[netip.Addr]
		for _, p := range b.clusterIP {
			taken = append(taken, p.spans(family)...)
		}
		spans := alloc.Addresses().Subtract(alloc.SpansOf(b.cidrs, family), taken)
		if len(b.clusterIP) == 0 || len(spans) == 0 {
			ledger.DeletePool(rest)
			continue
		}
		ledger.SetPool(alloc.Pool[netip.Addr]{
			Name: rest, Spans: spans, Exclude: alloc.EndsOf(b.cidrs, family), LowerBand: alloc.ServiceIPBand,
		})
	}
}

func (b *Book) setRestOfPorts() {
	var taken []alloc.PortRange
	for _, p := range b.nodePort {
		taken = append(taken, p.ports...)
	}
	spans := alloc.Ports().Subtract([]alloc.PortRange{b.config.NodePorts}, taken)
	if len(b.nodePort) == 0 || len(spans) == 0 {
		b.ports.DeletePool(rest)
		return
	}
	b.ports.SetPool(alloc.Pool[uint16]{Name: rest, Spans: spans, LowerBand: alloc.NodePortBand})
}

func band(fixed *int32, usual func(uint64) uint64) func(uint64) uint64 {
	if fixed == nil {
		return usual
	}
	return func(capacity uint64) uint64 { return min(uint64(*fixed), capacity) }
}

func quarantine(d *metav1.Duration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration
}

func limit(n *int32) int {
	if n == nil {
		return 0
	}
	return int(*n)
}

// Knows tells whether the book was given this generation of a ClusterIPPool.
func (b *Book) Knows(pool string, generation int64) bool { return knows(b.clusterIP, pool, generation) }

// KnowsPorts is Knows for a NodePortPool.
func (b *Book) KnowsPorts(pool string, generation int64) bool {
	return knows(b.nodePort, pool, generation)
}

// KnowsLoadBalancers is Knows for a LoadBalancerPool.
func (b *Book) KnowsLoadBalancers(pool string, generation int64) bool {
	return knows(b.loadBalancer, pool, generation)
}

func knows(policies []policy, name string, generation int64) bool {
	return slices.ContainsFunc(policies, func(p policy) bool { return p.name == name && p.generation >= generation })
}

// InUse tells whether a Service has an address of the prefix, or is just being
// given one.
func (b *Book) InUse(p netip.Prefix) bool {
	for lease := range b.addresses[alloc.FamilyOf(p.Addr())].All() {
		if lease.State >= alloc.Picked && p.Contains(lease.Value) {
			return true
		}
	}
	return false
}
