// SPDX-License-Identifier: Apache-2.0

package services

import (
	"cmp"
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
	// DefaultPendingFor is how long a grant is kept for a Service that does not
	// appear. It is longer than the API server gives a request.
	DefaultPendingFor = time.Minute

	// concurrent is how long two requests of one name are taken for competitors
	// that must not get the same value: the loser is to hear that the Service
	// exists, or that it changed, not that its address is taken. After that the
	// later one is a retry and gets what the earlier one was granted.
	concurrent = time.Second

	// suspectFor is how long a value that was granted for an update, and that no
	// Service was seen with, is granted to others only in need. The API server
	// books the values of an update before it stores the object, and does not
	// take that back when another write came between; it then tries again
	// and asks again. The booking stays until the API server's own repair: it
	// looks every three minutes and acts the third time.
	suspectFor = 15 * time.Minute
)

// Config says what the API does not tell.
type Config struct {
	// NodePorts is the API server's --service-node-port-range. The zero value
	// means DefaultNodePorts.
	NodePorts alloc.PortRange
	// PendingFor is how long a grant is kept for its Service. Zero means
	// DefaultPendingFor.
	PendingFor time.Duration
	// AddressAnnotations ask for LoadBalancer addresses; the first of them that a
	// Service has counts. None means v1alpha1.AddressesAnnotation alone.
	AddressAnnotations []string
}

// Allocations is all that is known about ClusterIPs and NodePorts. It is not safe
// for concurrent use.
type Allocations struct {
	config       Config
	addresses    map[corev1.IPFamily]*values[netip.Addr]
	ports        *values[uint16]
	loadBalancer map[corev1.IPFamily]*pools[netip.Addr]
	cidrs        []alloc.Range
}

var bothFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

// New returns Allocations of no Service, without pools.
func New(config Config) *Allocations {
	config.NodePorts = cmp.Or(config.NodePorts, DefaultNodePorts)
	config.PendingFor = cmp.Or(config.PendingFor, DefaultPendingFor)
	if len(config.AddressAnnotations) == 0 {
		config.AddressAnnotations = []string{v1alpha1.AddressesAnnotation}
	}
	a := &Allocations{
		config: config, addresses: map[corev1.IPFamily]*values[netip.Addr]{}, loadBalancer: map[corev1.IPFamily]*pools[netip.Addr]{},
		ports: newValues(alloc.Ports(), "NodePort", "NodePortPool", alloc.NodePortBand),
	}
	a.ports.unrecorded = true
	a.ports.setAvailable(true, []alloc.PortRange{config.NodePorts}, nil)
	for _, family := range bothFamilies {
		a.addresses[family] = newValues(alloc.Addresses(), "ClusterIP", "ClusterIPPool", alloc.ServiceIPBand)
		a.loadBalancer[family] = &pools[netip.Addr]{kind: alloc.Addresses(), resource: "LoadBalancerPool"}
	}
	return a
}

// Addresses returns the allocations of a family.
func (a *Allocations) Addresses(family corev1.IPFamily) *alloc.Allocations[netip.Addr] {
	return a.addresses[family].Allocations
}

// Ports returns the allocations of ports.
func (a *Allocations) Ports() *alloc.Allocations[uint16] { return a.ports.Allocations }

// Observe says that the API has this Service. It returns the other owners that
// have, or had until now, a value in common with it, if its values changed: what
// Check finds about them may have changed too.
func (a *Allocations) Observe(svc *corev1.Service, now time.Time) []alloc.Owner {
	v4, v6, ports := valuesOf(svc)
	return a.observe(alloc.OwnerOf(svc), v4, v6, ports, now)
}

// Forget says that the API no longer has the Service of this owner. It returns
// what Observe returns.
func (a *Allocations) Forget(owner alloc.Owner, now time.Time) []alloc.Owner {
	return a.observe(owner, nil, nil, nil, now)
}

func (a *Allocations) observe(owner alloc.Owner, v4, v6 []netip.Addr, ports []uint16, now time.Time) []alloc.Owner {
	return slices.Concat(a.addresses[corev1.IPv4Protocol].observe(owner, v4, now),
		a.addresses[corev1.IPv6Protocol].observe(owner, v6, now), a.ports.observe(owner, ports, now))
}

// observe is Allocations.Observe for values of one kind.
func (v *values[V]) observe(owner alloc.Owner, has []V, now time.Time) []alloc.Owner {
	before := v.Has(owner)
	if slices.Equal(before, has) {
		v.Observe(owner, has, now)
		return nil
	}
	var sharing []alloc.Owner
	for _, value := range before {
		sharing = append(sharing, v.otherHolders(value, owner)...)
	}
	v.Observe(owner, has, now)
	for _, value := range has {
		sharing = append(sharing, v.otherHolders(value, owner)...)
	}
	return sharing
}

// Expire ends what is pending or quarantined and whose time is up.
func (a *Allocations) Expire(now time.Time) {
	for _, v := range a.addresses {
		v.Expire(now)
	}
	a.ports.Expire(now)
}

// Families returns the cluster's address families, the default one first; none
// before SetServiceCIDRs.
func (a *Allocations) Families() []corev1.IPFamily {
	var out []corev1.IPFamily
	for _, r := range a.cidrs {
		if f := r.Family(); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// HasPools reports whether there is any pool because of which Admit could grant
// or deny something.
func (a *Allocations) HasPools() bool {
	return len(a.addresses[corev1.IPv4Protocol].list)+len(a.ports.list)+len(a.loadBalancer[corev1.IPv4Protocol].list) > 0
}
