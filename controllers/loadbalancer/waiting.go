// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

// waiting has the Services whose requests are not met, in order of arrival, and what each
// waits for, so that a released address retries one Service instead of all. It is a
// cache: after a restart every Service is tried. Safe for concurrent use.
type waiting struct {
	mu      sync.Mutex
	last    uint64 // order
	waiters map[types.NamespacedName]waiter
}

type waiter struct {
	order    uint64 // order of arrival
	families int    // how many it lacks
	full     []provisioner.FullPool
	addrs    []netip.Addr
}

func newWaiting() *waiting {
	return &waiting{waiters: map[types.NamespacedName]waiter{}}
}

// add makes key wait; one that waits already keeps its place.
func (w *waiting) add(key types.NamespacedName, unmet *provisioner.AllocationError) {
	w.mu.Lock()
	defer w.mu.Unlock()
	order := w.waiters[key].order
	if order == 0 {
		w.last++
		order = w.last
	}
	w.waiters[key] = waiter{order: order, families: len(unmet.Families), full: slices.Clone(unmet.Full), addrs: slices.Clone(unmet.Addresses)}
	pendingServices.Set(float64(len(w.waiters)))
}

// remove ends the wait of key, if there was one.
func (w *waiting) remove(key types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, key)
	pendingServices.Set(float64(len(w.waiters)))
}

// freed returns the Services to try when addr, of a pool, has become free: those that
// request it, and the one that has waited longest for any address of the pool. One that
// also lacks the other family may not be able to use this one yet, so the next one is
// tried as well.
func (w *waiting) freed(addr netip.Addr, pool string) []types.NamespacedName {
	want := provisioner.FullPool{Pool: pool, Family: alloc.FamilyOf(addr)}
	candidates := w.those(func(_ types.NamespacedName, x waiter) bool { return slices.Contains(x.full, want) })
	out := w.forAddr(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range candidates {
		x, waits := w.waiters[key]
		if !waits {
			continue // no longer
		}
		out = append(out, key)
		if x.families < 2 {
			break
		}
	}
	return out
}

// all returns all Services, longest wait first.
func (w *waiting) all() []types.NamespacedName {
	return w.those(func(types.NamespacedName, waiter) bool { return true })
}

// in returns the Services of a namespace, longest wait first.
func (w *waiting) in(namespace string) []types.NamespacedName {
	return w.those(func(key types.NamespacedName, _ waiter) bool { return key.Namespace == namespace })
}

// forAddr returns the Services that request addr, longest wait first.
func (w *waiting) forAddr(addr netip.Addr) []types.NamespacedName {
	return w.those(func(_ types.NamespacedName, x waiter) bool { return slices.Contains(x.addrs, addr) })
}

func (w *waiting) those(match func(types.NamespacedName, waiter) bool) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := slices.Collect(maps.Keys(w.waiters))
	keys = slices.DeleteFunc(keys, func(k types.NamespacedName) bool { return !match(k, w.waiters[k]) })
	slices.SortFunc(keys, func(a, b types.NamespacedName) int { return cmp.Compare(w.waiters[a].order, w.waiters[b].order) })
	return keys
}
