// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

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
	pools    []string
	addrs    []netip.Addr
	families []corev1.IPFamily
}

func newWaiting() *waiting {
	return &waiting{waiters: map[types.NamespacedName]waiter{}}
}

// add makes key wait; it keeps its turn if it waits already.
func (w *waiting) add(key types.NamespacedName, refused *provisioner.Refused, families []corev1.IPFamily) {
	w.mu.Lock()
	defer w.mu.Unlock()
	turn := w.waiters[key].turn
	if turn == 0 {
		w.turn++
		turn = w.turn
	}
	w.waiters[key] = waiter{turn: turn, pools: slices.Clone(refused.Pools), addrs: slices.Clone(refused.Addresses), families: slices.Clone(families)}
	pendingServices.Set(float64(len(w.waiters)))
}

// remove ends the wait of key, if there was one.
func (w *waiting) remove(key types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters, key)
	pendingServices.Set(float64(len(w.waiters)))
}

// freed returns whom to try when addr, of a pool, has become free: those who
// ask for it, and the one who has waited longest for any address of the pool.
func (w *waiting) freed(addr netip.Addr, pool string) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []types.NamespacedName
	var first types.NamespacedName
	var firstTurn uint64
	family := provisioner.FamilyOf(addr)
	for key, x := range w.waiters {
		switch {
		case slices.Contains(x.addrs, addr):
			out = append(out, key)
		case slices.Contains(x.pools, pool) && slices.Contains(x.families, family) && (firstTurn == 0 || x.turn < firstTurn):
			first, firstTurn = key, x.turn
		}
	}
	if firstTurn != 0 {
		out = append(out, first)
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
