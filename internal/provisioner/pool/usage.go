// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
)

// maxCount is the largest integer that every JSON reader keeps exactly.
const maxCount = 1<<53 - 1

// Report is the state of a pool, for its status.
type Report struct {
	// IPv4 and IPv6 are nil when the pool has no such addresses and none drain.
	IPv4, IPv6 *v1alpha1.PoolUsage
	// Excluded is what of the pool belongs to others, in address order.
	Excluded []Exclusion
	// NextExpiry is when the first quarantine ends; zero when none is on.
	NextExpiry time.Time
}

// Report describes a pool; false when there is none of that name.
func (x *Index) Report(name string) (Report, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p, ok := x.pools[name]
	if !ok {
		return Report{}, false
	}
	r := Report{
		IPv4: x.usage(p, corev1.IPv4Protocol), IPv6: x.usage(p, corev1.IPv6Protocol),
		Excluded: slices.SortedStableFunc(slices.Values(p.excluded), func(a, b Exclusion) int { return a.Range.First.Compare(b.Range.First) }),
	}
	for a := range p.released {
		if end := x.records[a].ReleasedAt.Add(p.Quarantine); r.NextExpiry.IsZero() || end.Before(r.NextExpiry) {
			r.NextExpiry = end
		}
	}
	return r, true
}

// usage counts a family of a pool. What is in none of the other counts is
// excluded.
func (x *Index) usage(p *poolState, f corev1.IPFamily) *v1alpha1.PoolUsage {
	var total, free uint64
	for _, s := range p.bitmaps {
		if alloc.FamilyOf(s.in.First) != f {
			continue
		}
		total = addSaturating(total, sizeOf(s.in))
		free = addSaturating(free, s.free()+sizeOf(s.in)-s.bits.Size())
		for a := range x.inFlight {
			if _, recorded := x.records[a]; !recorded && addresses.Contains(s.in, a) && !s.isBlocked(a) {
				free++ // not assigned yet
			}
		}
	}
	if total == 0 && p.draining[f] == 0 {
		return nil
	}
	c := p.counts[f]
	u := &v1alpha1.PoolUsage{
		Total: clamp(total), Assigned: c[inUse], Reserved: c[reserved], Quarantined: c[quarantined],
		Free: clamp(free), Draining: p.draining[f],
	}
	rest := u.Total - u.Assigned - u.Reserved - u.Quarantined
	if total > maxCount { // too many to tell apart
		u.Free = max(0, rest)
		return u
	}
	u.Excluded = max(0, rest-u.Free)
	return u
}

func addSaturating(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func clamp(n uint64) int64 { return int64(min(n, maxCount)) }

// Expired returns the records whose quarantine in this pool is over, in address
// order. With an unknown pool it returns nothing.
func (x *Index) Expired(pool string, now time.Time) []Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	p, ok := x.pools[pool]
	if !ok {
		return nil
	}
	var out []Record
	for a := range p.released {
		if r := x.records[a]; !now.Before(r.ReleasedAt.Add(p.Quarantine)) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Record) int { return a.Address.Compare(b.Address) })
	return out
}

// Orphans returns the records without owner, that are not reserved, and
// that are in no pool: nothing will ever wait for them.
func (x *Index) Orphans() []Record {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []Record
	for _, a := range sorted(x.orphans) {
		out = append(out, x.records[a])
	}
	return out
}

// Mismatched returns the Services whose record names another pool than the one
// that the address belongs to; their records want an update.
func (x *Index) Mismatched() []alloc.Owner {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []alloc.Owner
	for _, r := range x.records {
		if containing := x.poolFor(r.Address); containing != nil && containing.Name != r.Pool {
			out = append(out, r.Owners...)
		}
	}
	return out
}

// AddressesOf returns the addresses that are assigned to a Service of this name, in
// order.
func (x *Index) AddressesOf(owner alloc.Owner) []netip.Addr {
	x.mu.Lock()
	defer x.mu.Unlock()
	return sorted(x.byOwner[nameOf(owner)])
}

// Lookup returns the record of an address.
func (x *Index) Lookup(a netip.Addr) (Record, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r, ok := x.records[a]
	return r, ok
}

// PoolFor names the pool that an address belongs to; "" when none contains it.
func (x *Index) PoolFor(a netip.Addr) string {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.poolFor(a); p != nil {
		return p.Name
	}
	return ""
}

// quarantine is how long the address rests when it is released.
func (x *Index) quarantine(a netip.Addr) time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.poolFor(a); p != nil {
		return p.Quarantine
	}
	return 0
}

// Pools returns the names of the pools, in order.
func (x *Index) Pools() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Sorted(maps.Keys(x.pools))
}
