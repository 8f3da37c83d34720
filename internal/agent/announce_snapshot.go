// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
)

// syncGrace is how long the kernel may lag behind before this node stops announcing:
// it lags for a moment after every change, and moving an address breaks connections.
const syncGrace = 3 * time.Second

// usable reports whether the kernel forwards well enough to announce, and when
// to look again if that may change by itself.
func usable(s syncer.Status, now time.Time) (ok bool, again time.Duration) {
	switch {
	case !s.Started:
		return false, 0
	case s.InSync:
		// A Backend that does not return reports nothing: the oldest change counts.
		late, again := s.Late(now)
		return !late, again
	}
	left := syncGrace - now.Sub(s.Since)
	return left > 0, max(left, 0)
}

// snapshotter computes the announcer's snapshots from the Store.
type snapshotter struct {
	// ignoreExcludeLabel is AnnouncerConfig's.
	ignoreExcludeLabel bool

	last  *announce.Snapshot
	pools map[string]cachedPool
}

// cachedPool keeps a pool's pointer the same while the pool is.
type cachedPool struct {
	version string
	pool    *announce.Pool
}

// forget makes the next snapshot count as changed.
func (b *snapshotter) forget() { b.last = nil }

// make returns the present snapshot and whether it differs from the last one.
func (b *snapshotter) make(store *Store, starting, inSync bool) (announce.Snapshot, bool) {
	snap := announce.Snapshot{Starting: starting, InSync: inSync}
	b.readPools(store.Pools())
	for _, record := range store.Addresses() {
		if a, ok := b.address(store, record); ok {
			snap.Addresses = append(snap.Addresses, a)
		}
	}
	for _, n := range store.Nodes() {
		snap.Nodes = append(snap.Nodes, announceNode(n))
	}
	if b.last != nil && reflect.DeepEqual(*b.last, snap) {
		return snap, false
	}
	b.last = &snap
	return snap, true
}

func announceNode(n *corev1.Node) announce.Node {
	return announce.Node{
		Name: n.Name, Labels: n.Labels, Excluded: v1alpha1.ExcludedByLabel(n.Labels),
		Cordoned: n.Spec.Unschedulable, Deleting: !eligible(n), NoNetwork: networkUnavailable(n), InternalIPs: internalIPs(n),
	}
}

// noPool is for addresses whose pool is gone: any node may announce them.
const noPool = ""

func (b *snapshotter) readPools(pools []*v1alpha1.LoadBalancerPool) {
	old := b.pools
	b.pools = map[string]cachedPool{noPool: old[noPool]}
	if b.pools[noPool].pool == nil {
		b.pools[noPool] = cachedPool{pool: &announce.Pool{Kind: announce.L2, Pool: elect.Pool{IgnoreExcludeLabel: b.ignoreExcludeLabel}}}
	}
	for _, p := range pools {
		if c, ok := old[p.Name]; ok && c.version == p.ResourceVersion {
			b.pools[p.Name] = c
			continue
		}
		b.pools[p.Name] = cachedPool{p.ResourceVersion, announcePool(p, b.ignoreExcludeLabel)}
	}
}

func announcePool(p *v1alpha1.LoadBalancerPool, ignoreExcludeLabel bool) *announce.Pool {
	out := &announce.Pool{Kind: announce.L2}
	out.IgnoreExcludeLabel = ignoreExcludeLabel || p.Spec.IgnoreExcludeLabel
	for _, pattern := range p.Spec.Interfaces {
		out.Interfaces = append(out.Interfaces, string(pattern))
	}
	switch p.Spec.Failback.Mode {
	case v1alpha1.FailbackNever:
		out.Preempt = announce.Never
	case v1alpha1.FailbackDelayed:
		if p.Spec.Failback.Delay != nil {
			out.Preempt = p.Spec.Failback.Delay.Duration
		}
	}
	if s := p.Spec.NodeSelector; s != nil {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			selector = labels.Nothing() // the API server refuses such a pool
		}
		out.Selects = func(l map[string]string) bool { return selector.Matches(labels.Set(l)) }
	}
	return out
}

// address returns what is to be announced for a record; false while no Service uses the
// address: a node that answers for an address must forward packets to it.
func (b *snapshotter) address(store *Store, record *v1alpha1.LoadBalancerAddress) (announce.Address, bool) {
	addr, err := netip.ParseAddr(record.Spec.Address)
	if err != nil || record.DeletionTimestamp != nil {
		return announce.Address{}, false
	}
	addr = addr.Unmap()
	pool, ok := b.pools[record.Spec.Pool]
	if !ok {
		pool = b.pools[noPool]
	}
	out := announce.Address{Addr: addr, Pool: pool.pool, Recorded: record.Status.Node}
	served := false
	for _, ref := range record.Spec.Services {
		name := types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}
		svc := store.Service(name)
		if svc == nil || string(svc.UID) != ref.UID || !hasIngress(svc, addr) {
			continue
		}
		served = true
		if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			out.Local = restrict(out.Local, endpointNodes(store.Slices(name), addr.Is4()))
		}
	}
	return out, served
}

func hasIngress(svc *corev1.Service, addr netip.Addr) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		slices.ContainsFunc(svc.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) bool {
			ip, ok := netaddr.Parse(in.IP)
			return ok && ip == addr
		})
}

// endpointNodes returns the nodes with a ready endpoint of the family; if there is none,
// those with one that serves while it terminates (KEP-1669).
func endpointNodes(list []*discoveryv1.EndpointSlice, v4 bool) map[string]bool {
	family := discoveryv1.AddressTypeIPv6
	if v4 {
		family = discoveryv1.AddressTypeIPv4
	}
	ready, serving := map[string]bool{}, map[string]bool{}
	for _, s := range list {
		if s.AddressType != family {
			continue
		}
		for i := range s.Endpoints {
			ep := &s.Endpoints[i]
			if ep.NodeName == nil {
				continue
			}
			c := ep.Conditions
			switch {
			case c.Ready == nil || *c.Ready:
				ready[*ep.NodeName] = true
			case c.Serving != nil && *c.Serving:
				serving[*ep.NodeName] = true
			}
		}
	}
	if len(ready) == 0 {
		return serving
	}
	return ready
}

// restrict returns the nodes for two Services that share an address: those that suit
// both if there are any, else those that suit either. nil is all nodes.
func restrict(a, b map[string]bool) map[string]bool {
	if a == nil {
		return b
	}
	both, either := maps.Clone(a), maps.Clone(a)
	maps.DeleteFunc(both, func(n string, _ bool) bool { return !b[n] })
	maps.Copy(either, b)
	if len(both) > 0 {
		return both
	}
	return either
}
