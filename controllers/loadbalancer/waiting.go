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

// waiting are the Services whose requests are not met, oldest first, and what
// each waits for, so that an address that is freed wakes one Service and not
// all. It is a cache: after a restart every Service is tried anyway. Safe for
// concurrent use.
type waiting struct {
	mu      sync.Mutex
	turn    uint64
	waiters map[types.NamespacedName]waiter
}

type waiter struct {
	turn     uint64 // order of arrival
	families int    // how many it lacks
	full     []provisioner.FullPool
	addrs    []netip.Addr
}

func newWaiting() *waiting {
	return &waiting{waiters: map[types.NamespacedName]waiter{}}
}

// add makes key wait; it keeps its turn if it waits already.
func (w *waiting) add(key types.NamespacedName, refused *provisioner.AllocationError) {
	w.mu.Lock()
	defer w.mu.Unlock()
	turn := w.waiters[key].turn
	if turn == 0 {
		w.turn++
		turn = w.turn
	}
	w.waiters[key] = waiter{turn: turn, families: len(refused.Families), full: slices.Clone(refused.Full), addrs: slices.Clone(refused.Addresses)}
	pendingServices.Set(float64(len(w.waiters)))
}

// remove ends the wait of key, if there was one.
func (w *waiting) remove(key types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, key)
	pendingServices.Set(float64(len(w.waiters)))
}

// freed returns the Services to try when addr, of a pool, has become free: those who
// ask for it, and the one who has waited longest for any address of the pool.
// Who lacks the other family, too, may not be able to take this one yet, so the
// next in line is tried as well.
func (w *waiting) freed(addr netip.Addr, pool string) []types.NamespacedName {
	want := provisioner.FullPool{Pool: pool, Family: alloc.FamilyOf(addr)}
	candidates := w.those(func(_ types.NamespacedName, x waiter) bool { return slices.Contains(x.full, want) })
	out := w.forAddr(addr)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range candidates {
		x, waits := w.waiters[key]
		if !waits {
			continue // it has been served meanwhile
		}
		out = append(out, key)
		if x.families < 2 {
			break
		}
	}
	return out
}

// all returns everyone, longest wait first.
func (w *waiting) all() []types.NamespacedName {
	return w.those(func(types.NamespacedName, waiter) bool { return true })
}

// in returns those of a namespace, longest wait first.
func (w *waiting) in(namespace string) []types.NamespacedName {
	return w.those(func(key types.NamespacedName, _ waiter) bool { return key.Namespace == namespace })
}

// forAddr returns those who ask for addr, longest wait first.
func (w *waiting) forAddr(addr netip.Addr) []types.NamespacedName {
	return w.those(func(_ types.NamespacedName, x waiter) bool { return slices.Contains(x.addrs, addr) })
}

func (w *waiting) those(match func(types.NamespacedName, waiter) bool) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	keys := slices.Collect(maps.Keys(w.waiters))
	keys = slices.DeleteFunc(keys, func(k types.NamespacedName) bool { return !match(k, w.waiters[k]) })
	slices.SortFunc(keys, func(a, b types.NamespacedName) int { return cmp.Compare(w.waiters[a].turn, w.waiters[b].turn) })
	return keys
}
