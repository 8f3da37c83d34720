// SPDX-License-Identifier: Apache-2.0

package book

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// DefaultNodePorts is the API server's --service-node-port-range unless it was
// told otherwise.
var DefaultNodePorts = alloc.PortRange{First: 30000, Last: 32767}

const (
	// DefaultHold is how long a grant is kept for a Service that does not
	// appear. It is longer than the API server gives a request.
	DefaultHold = time.Minute

	// concurrent is how long two requests of one name are taken for rivals that
	// must not get the same value: the loser is to hear that the Service exists,
	// or that it changed, not that its address is taken. After that the later
	// one is a retry and gets what the earlier one was granted.
	concurrent = time.Second

	// doubt is how long a value that was granted for an update, and that no
	// Service was seen with, is given to others only in need. The API server
	// books the values of an update before it stores the object, and does not
	// take that back when somebody else's write came between; it then tries again
	// and asks again. The booking stays until the API server's own repair: it
	// looks every three minutes and acts the third time.
	doubt = 15 * time.Minute
)

// Config says what the API does not tell.
type Config struct {
	// NodePorts is the API server's --service-node-port-range. The zero value
	// means DefaultNodePorts.
	NodePorts alloc.PortRange
	// Hold is how long a grant is kept for its Service. Zero means DefaultHold.
	Hold time.Duration
	// AddressAnnotations ask for LoadBalancer addresses; the first of them that a
	// Service has counts. None means v1alpha1.AddressesAnnotation alone.
	AddressAnnotations []string
}

// Book is all that is known about ClusterIPs and NodePorts. It is not safe for
// concurrent use.
type Book struct {
	config    Config
	addresses map[corev1.IPFamily]*alloc.Ledger[netip.Addr]
	ports     *alloc.Ledger[uint16]
	cidrs     []alloc.Range

	// The pools, in the order in which they are asked.
	clusterIP, nodePort, loadBalancer []policy
	specs                             map[string]*v1alpha1.ClusterIPPool // by name, as set
}

// New returns an empty book.
func New(config Config) *Book {
	if config.NodePorts == (alloc.PortRange{}) {
		config.NodePorts = DefaultNodePorts
	}
	if len(config.AddressAnnotations) == 0 {
		config.AddressAnnotations = []string{v1alpha1.AddressesAnnotation}
	}
	if config.Hold == 0 {
		config.Hold = DefaultHold
	}
	return &Book{
		config: config,
		addresses: map[corev1.IPFamily]*alloc.Ledger[netip.Addr]{
			corev1.IPv4Protocol: alloc.NewLedger(alloc.Addresses()),
			corev1.IPv6Protocol: alloc.NewLedger(alloc.Addresses()),
		},
		ports: alloc.NewLedger(alloc.Ports()),
		specs: map[string]*v1alpha1.ClusterIPPool{},
	}
}

// Addresses returns the ledger of a family, to read.
func (b *Book) Addresses(family corev1.IPFamily) *alloc.Ledger[netip.Addr] {
	return b.addresses[family]
}

// Ports returns the ledger of ports, to read.
func (b *Book) Ports() *alloc.Ledger[uint16] { return b.ports }

// OwnerOf returns a stored Service as an owner.
func OwnerOf(svc *corev1.Service) alloc.Owner {
	return alloc.Owner{Namespace: svc.Namespace, Name: svc.Name, UID: string(svc.UID)}
}

// Observe says that the API has this Service.
func (b *Book) Observe(svc *corev1.Service, now time.Time) {
	v4, v6, ports := holds(svc)
	owner := OwnerOf(svc)
	b.addresses[corev1.IPv4Protocol].Observe(owner, v4, now)
	b.addresses[corev1.IPv6Protocol].Observe(owner, v6, now)
	b.ports.Observe(owner, ports, now)
}

// Forget says that the API no longer has the Service of this owner.
func (b *Book) Forget(owner alloc.Owner, now time.Time) {
	for _, ledger := range b.addresses {
		ledger.Forget(owner, now)
	}
	b.ports.Forget(owner, now)
}

// Expire ends the picks and rests whose time is up.
func (b *Book) Expire(now time.Time) {
	for _, ledger := range b.addresses {
		ledger.Expire(now)
	}
	b.ports.Expire(now)
}

// Families returns the cluster's address families, the default one first; none
// before SetServiceCIDRs.
func (b *Book) Families() []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, r := range b.cidrs {
		if f := r.Family(); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// HasPools tells whether there is any pool that Admit could have something to
// say about.
func (b *Book) HasPools() bool {
	return len(b.clusterIP)+len(b.nodePort)+len(b.loadBalancer) > 0
}

// Outside returns the parts of a ClusterIPPool that lie in no ServiceCIDR, as
// text, in order.
func (b *Book) Outside(pool string) []string {
	var out []string
	for _, p := range b.clusterIP {
		if p.name != pool {
			continue
		}
		for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
			for _, s := range b.outside(p, family) {
				out = append(out, alloc.Addresses().Text(s))
			}
		}
	}
	return out
}

// OutsidePorts returns the parts of a NodePortPool that lie outside the API
// server's range, as text, in order.
func (b *Book) OutsidePorts(pool string) []string {
	var out []string
	for _, p := range b.nodePort {
		if p.name == pool {
			for _, s := range b.outsidePorts(p) {
				out = append(out, alloc.Ports().Text(s))
			}
		}
	}
	return out
}

// Clashes returns what a ClusterIPPool or NodePortPool shares with other pools
// of its kind, as text, in order.
func (b *Book) Clashes(pool string) []string {
	var out []string
	for _, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		out = append(out, clashes(alloc.Addresses(), pool, b.clusterIP, func(p policy) []alloc.Span[netip.Addr] { return p.spans(family) })...)
	}
	return out
}

// PortClashes is Clashes for a NodePortPool.
func (b *Book) PortClashes(pool string) []string {
	return clashes(alloc.Ports(), pool, b.nodePort, func(p policy) []alloc.PortRange { return p.ports })
}

func clashes[V comparable](kind alloc.Kind[V], pool string, policies []policy, spans func(policy) []alloc.Span[V]) []string {
	mine := alloc.Named[V]{Name: pool}
	var others []alloc.Named[V]
	for _, p := range policies {
		if p.name == pool {
			mine.Spans = spans(p)
		} else {
			others = append(others, alloc.Named[V]{Name: p.name, Spans: spans(p)})
		}
	}
	return kind.Overlaps(mine, others)
}
