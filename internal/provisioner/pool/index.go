// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// Exclusion is a range that belongs to something else and is not given out.
type Exclusion struct {
	Range Range
	// Why names the other, for users: "node node-1", "pool a", "Services".
	Why string
}

// String returns "192.0.2.7 (node node-1)".
func (e Exclusion) String() string { return addresses.Text(e.Range) + " (" + e.Why + ")" }

// Index is what is known of pools and records, arranged for allocation. It is
// fed by events in any order, and by this process's own writes before their
// events arrive. Safe for concurrent use.
type Index struct {
	mu         sync.Mutex
	pools      map[string]*poolState
	order      []*poolState           // as auto-assignment tries them
	byAge      []*poolState           // oldest first: the first that contains an address has it
	exclusions map[string][]Exclusion // by source
	records    map[netip.Addr]Record
	inFlight   map[netip.Addr]alloc.Owner // reserved for a Service, API call under way

	// Derived from records.
	byOwner, reservedFor, releasedBy map[alloc.Owner]addrSet
	bySharingKey                     map[string]addrSet
	orphans                          addrSet // released, and in no pool
}

type addrSet map[netip.Addr]struct{}

// poolState is a pool and its derived state.
type poolState struct {
	Pool
	bitmaps      []*rangeBitmap // one a range
	excluded     []Exclusion    // what of the pool belongs to others
	counts       map[corev1.IPFamily]*[3]int64
	draining     map[corev1.IPFamily]int64
	released     addrSet        // in quarantine here
	perNamespace map[tenant]int // addresses of a namespace's Services
}

// tenant is a namespace, as far as addresses of one family are concerned.
type tenant struct {
	namespace string
	family    corev1.IPFamily
}

// NewIndex returns an empty index.
func NewIndex() *Index {
	return &Index{
		pools: map[string]*poolState{}, exclusions: map[string][]Exclusion{}, records: map[netip.Addr]Record{}, inFlight: map[netip.Addr]alloc.Owner{},
		byOwner: map[alloc.Owner]addrSet{}, reservedFor: map[alloc.Owner]addrSet{},
		releasedBy: map[alloc.Owner]addrSet{}, bySharingKey: map[string]addrSet{}, orphans: addrSet{},
	}
}

// SetPool adds or replaces a pool and reports whether that changed anything. A
// change costs as much as there are records, for which pool an address belongs
// to may change.
func (x *Index) SetPool(p Pool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old, ok := x.pools[p.Name]; ok && old.equal(&p) {
		return false
	}
	x.pools[p.Name] = &poolState{Pool: p}
	x.rebuild()
	return true
}

// DeletePool forgets a pool; records that came from it stay.
func (x *Index) DeletePool(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.pools[name]; !ok {
		return
	}
	delete(x.pools, name)
	x.rebuild()
}

// SetExclusions replaces what one source (a node, a ServiceCIDR) says belongs to
// others; empty takes it back. Other pools are no source: those are compared
// here. It reports whether that changed any pool, which costs as SetPool does.
func (x *Index) SetExclusions(source string, exclusions []Exclusion) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	before := x.relevant(x.exclusions[source])
	if len(exclusions) == 0 {
		delete(x.exclusions, source)
	} else {
		x.exclusions[source] = slices.Clone(exclusions)
	}
	if slices.Equal(before, x.relevant(exclusions)) {
		return false // a node whose addresses are nowhere near a pool
	}
	x.rebuild()
	return true
}

// relevant are the exclusions that meet a pool.
func (x *Index) relevant(exclusions []Exclusion) []Exclusion {
	var out []Exclusion
	for _, e := range exclusions {
		if slices.ContainsFunc(x.byAge, func(p *poolState) bool { return len(Meet(e.Range, p.Ranges)) > 0 }) {
			out = append(out, e)
		}
	}
	return out
}

// rebuild derives everything about pools from pools, exclusions and records.
func (x *Index) rebuild() {
	x.byAge = slices.SortedFunc(maps.Values(x.pools), func(a, b *poolState) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	x.order = slices.SortedFunc(maps.Values(x.pools), func(a, b *poolState) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), -compareBool(a.selective(), b.selective()), cmp.Compare(a.Name, b.Name))
	})
	var others []Exclusion
	for _, source := range slices.Sorted(maps.Keys(x.exclusions)) {
		others = append(others, x.exclusions[source]...)
	}
	for i, p := range x.byAge {
		p.derive(others, x.byAge[:i])
	}
	x.orphans = addrSet{}
	for _, r := range x.records {
		x.count(r, 1)
	}
	for a := range x.inFlight {
		x.mark(a)
	}
}

// derive sets up bitmaps and counters from the pool's ranges. Of two pools that
// overlap the older one has the addresses.
func (s *poolState) derive(exclusions []Exclusion, older []*poolState) {
	s.excluded, s.bitmaps, s.released, s.perNamespace = nil, nil, addrSet{}, map[tenant]int{}
	s.counts = map[corev1.IPFamily]*[3]int64{corev1.IPv4Protocol: {}, corev1.IPv6Protocol: {}}
	s.draining = map[corev1.IPFamily]int64{}
	others := slices.Clone(exclusions)
	for _, other := range older {
		for _, r := range other.Ranges {
			others = append(others, Exclusion{Range: r, Why: "LoadBalancerPool " + other.Name})
		}
	}
	for _, special := range alloc.Special() {
		others = append(others, Exclusion{Range: special.Span, Why: special.Why})
	}
	var blocked []Range
	for _, e := range others {
		for _, both := range Meet(e.Range, s.Ranges) {
			s.excluded, blocked = append(s.excluded, Exclusion{Range: both, Why: e.Why}), append(blocked, both)
		}
	}
	for _, r := range s.Ranges {
		s.bitmaps = append(s.bitmaps, newRangeBitmap(r, blocked, s.Ends, s.AvoidBuggyIPs))
	}
}

// Put records what an object says, unless the index knows something newer. It
// returns the record before, and false when there was none.
func (x *Index) Put(r Record) (before Record, existed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.put(r)
}

func (x *Index) put(r Record) (before Record, existed bool) {
	before, existed = x.records[r.Address]
	if existed && !newer(r.Version, before.Version) {
		return before, existed
	}
	if existed {
		x.forget(before)
	}
	x.records[r.Address] = r
	x.count(r, 1)
	x.link(r)
	return before, existed
}

// Delete forgets the record of an object that is gone. A record of the same
// address with another UID stays: it is of a later object.
func (x *Index) Delete(addr netip.Addr, uid string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if r, ok := x.records[addr]; ok && r.UID == uid {
		x.forget(r)
	}
}

func (x *Index) forget(r Record) {
	delete(x.records, r.Address)
	x.count(r, -1)
	x.unlink(r)
}

// newer compares two resource versions of one kind of object. What cannot be
// compared counts as newer: an event is better than no event.
func newer(a, b string) bool {
	c, err := resourceversion.CompareResourceVersion(a, b)
	return err != nil || c > 0
}

// count adds r to (by = 1) or takes it from (by = -1) its pools' counters and
// bitmaps.
func (x *Index) count(r Record, by int64) {
	family := alloc.FamilyOf(r.Address)
	if from, ok := x.pools[r.Pool]; ok && r.state() == inUse && !containsAddr(from.Ranges, r.Address) {
		from.draining[family] += by
	}
	containing, released := x.poolFor(r.Address), x.orphans
	if containing != nil {
		containing.counts[family][r.state()] += by
		for i, o := range r.Owners {
			if of := (tenant{o.Namespace, family}); !inNamespace(r.Owners[:i], o.Namespace) {
				if containing.perNamespace[of] += int(by); containing.perNamespace[of] == 0 {
					delete(containing.perNamespace, of)
				}
			}
		}
		released = containing.released
	}
	if r.state() == quarantined && by > 0 {
		released[r.Address] = struct{}{}
	} else if r.state() == quarantined {
		delete(released, r.Address)
	}
	if containing == nil {
		return
	}
	if by > 0 {
		x.mark(r.Address)
	} else {
		x.unmark(r.Address)
	}
}

// inNamespace reports whether one of the owners is in the namespace.
func inNamespace(owners []alloc.Owner, namespace string) bool {
	return slices.ContainsFunc(owners, func(o alloc.Owner) bool { return o.Namespace == namespace })
}

// mark makes an address unavailable to find, in every pool that contains it.
func (x *Index) mark(a netip.Addr) {
	for _, s := range x.bitmapsOf(a) {
		s.set(a)
	}
}

// unmark makes it available again unless a record or an API call has it.
func (x *Index) unmark(a netip.Addr) {
	if _, ok := x.records[a]; ok {
		return
	}
	if _, ok := x.inFlight[a]; ok {
		return
	}
	for _, s := range x.bitmapsOf(a) {
		s.clear(a)
	}
}

func (x *Index) bitmapsOf(a netip.Addr) []*rangeBitmap {
	var out []*rangeBitmap
	for _, p := range x.byAge {
		for _, s := range p.bitmaps {
			if addresses.Contains(s.in, a) {
				out = append(out, s)
			}
		}
	}
	return out
}

// poolFor is the pool that an address belongs to; nil when none contains it.
func (x *Index) poolFor(a netip.Addr) *poolState {
	for _, p := range x.byAge {
		if containsAddr(p.Ranges, a) {
			return p
		}
	}
	return nil
}

// link and unlink keep the derived sets.
func (x *Index) link(r Record) {
	for _, o := range r.Owners {
		add(x.byOwner, nameOf(o), r.Address)
	}
	if r.ReservedFor.Name != "" {
		add(x.reservedFor, r.ReservedFor, r.Address)
	}
	if r.ReleasedBy.Name != "" && r.state() == quarantined {
		add(x.releasedBy, r.ReleasedBy, r.Address)
	}
	if r.SharingKey != "" && len(r.Owners) > 0 {
		add(x.bySharingKey, r.SharingKey, r.Address)
	}
}

func (x *Index) unlink(r Record) {
	for _, o := range r.Owners {
		remove(x.byOwner, nameOf(o), r.Address)
	}
	remove(x.reservedFor, r.ReservedFor, r.Address)
	remove(x.releasedBy, r.ReleasedBy, r.Address)
	remove(x.bySharingKey, r.SharingKey, r.Address)
}

func add[K comparable](m map[K]addrSet, k K, a netip.Addr) {
	if m[k] == nil {
		m[k] = addrSet{}
	}
	m[k][a] = struct{}{}
}

func remove[K comparable](m map[K]addrSet, k K, a netip.Addr) {
	delete(m[k], a)
	if len(m[k]) == 0 {
		delete(m, k)
	}
}

// nameOf drops the UID.
func nameOf(o alloc.Owner) alloc.Owner {
	return alloc.Owner{Namespace: o.Namespace, Name: o.Name}
}

func sorted(s addrSet) []netip.Addr {
	return slices.SortedFunc(maps.Keys(s), netip.Addr.Compare)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}
