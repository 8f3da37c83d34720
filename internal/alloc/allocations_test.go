// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func owner(name string) Owner { return Owner{Namespace: "shop", Name: name, UID: "uid-" + name} }

func ports(first, last uint16) []PortRange { return []PortRange{{First: first, Last: last}} }

func mustNext[V comparable](t *testing.T, l *Allocations[V], pool string, ask Ask) V {
	t.Helper()
	v, err := l.Next(pool, ask)
	if err != nil {
		t.Fatalf("next of %s: %v", pool, err)
	}
	return v
}

func TestAllocationStates(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30001), Quarantine: time.Minute})
	a, b, c := owner("a"), owner("b"), owner("c")

	first := mustNext(t, l, "p", Ask{Owner: a, Now: t0, PendingFor: time.Second})
	second := mustNext(t, l, "p", Ask{Owner: b, Now: t0, PendingFor: time.Hour})
	if first == second {
		t.Fatalf("%d was picked twice", first)
	}
	var full *FullError
	if _, err := l.Next("p", Ask{Owner: c, Now: t0}); !errors.Is(err, ErrFull) || !errors.As(err, &full) || !full.Next.Equal(t0.Add(time.Second)) {
		t.Fatalf("next of a full pool: %v, free at %v", err, full)
	}
	// a is never seen: its pick is free again. b is seen and stays beyond its hold.
	l.Observe(b, []uint16{second}, t0)
	now := t0.Add(2 * time.Hour)
	if got := mustNext(t, l, "p", Ask{Owner: c, Now: now, PendingFor: time.Hour}); got != first {
		t.Fatalf("picked %d, want %d whose pick ran out", got, first)
	}
	l.Observe(c, []uint16{first}, now)
	l.Forget(c, now)
	if diff := cmp.Diff(Stats{Capacity: 2, Held: 1, Quarantined: 1}, l.Stats("p")); diff != "" {
		t.Errorf("stats while resting (-want +got):\n%s", diff)
	}
	if _, err := l.Next("p", Ask{Owner: a, Now: now.Add(59 * time.Second)}); !errors.Is(err, ErrFull) {
		t.Errorf("a resting value was given away: %v", err)
	}
	if diff := cmp.Diff([]uint16{first}, l.Remembers(Owner{Namespace: "shop", Name: "c"})); diff != "" {
		t.Errorf("remembered (-want +got):\n%s", diff)
	}
	if err := l.Take(first, Ask{Owner: Owner{Namespace: "shop", Name: "c"}, Now: now.Add(59 * time.Second), PendingFor: time.Second}); err != nil {
		t.Errorf("take a resting value: %v", err)
	}
	if got := mustNext(t, l, "p", Ask{Owner: a, Now: now.Add(2 * time.Minute), PendingFor: time.Second}); got != first {
		t.Errorf("after the rest: got %d, want %d", got, first)
	}
}

func TestTakeOfHeldValueNamesOwner(t *testing.T) {
	l := New(Addresses())
	v := netip.MustParseAddr("192.0.2.7")
	l.Observe(owner("web"), []netip.Addr{v}, t0)
	err := l.Take(v, Ask{Owner: owner("other"), Now: t0})
	if !errors.Is(err, ErrTaken) || err.Error() != "192.0.2.7 is held by Service shop/web" {
		t.Errorf("take a held address: %v", err)
	}
	if err := l.Take(v, Ask{Owner: Owner{Namespace: "shop", Name: "web"}, Now: t0}); err != nil {
		t.Errorf("take one's own address: %v", err)
	}
	unnamed := Owner{Namespace: "shop", UID: "request-1"}
	w := v.Next()
	if err := l.Take(w, Ask{Owner: unnamed, Now: t0, PendingFor: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := l.Take(w, Ask{Owner: Owner{Namespace: "shop", UID: "request-2"}, Now: t0}); !errors.Is(err, ErrTaken) {
		t.Errorf("two unnamed Services got %s: %v", w, err)
	}
	l.Drop(w, unnamed)
	if len(l.Of(w)) != 0 {
		t.Errorf("dropped, but allocated: %v", l.Of(w))
	}
}

func TestDuplicateOwnersAreReported(t *testing.T) {
	l := New(Ports())
	l.Observe(owner("a"), []uint16{30000, 30001}, t0)
	l.Observe(owner("b"), []uint16{30001}, t0)
	if diff := cmp.Diff([]uint16{30001}, l.Duplicates()); diff != "" {
		t.Errorf("duplicates (-want +got):\n%s", diff)
	}
	l.Observe(owner("b"), []uint16{30002}, t0)
	if got := l.Duplicates(); len(got) != 0 {
		t.Errorf("duplicates %v after one moved away", got)
	}
}

func TestQuota(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009), MaxPerNamespace: 2})
	mustNext(t, l, "p", Ask{Owner: owner("a"), Now: t0, PendingFor: time.Minute})
	if err := l.Take(30005, Ask{Owner: owner("b"), Now: t0, PendingFor: time.Hour}); err != nil && !errors.Is(err, ErrTaken) {
		t.Fatal(err)
	}
	_, err := l.Next("p", Ask{Owner: owner("c"), Now: t0})
	if !errors.Is(err, ErrQuota) || !strings.Contains(err.Error(), "namespace shop holds 2 values of pool p") {
		t.Errorf("third value of two: %v", err)
	}
	if err := l.Take(30009, Ask{Owner: owner("c"), Now: t0}); !errors.Is(err, ErrQuota) {
		t.Errorf("third value of two, by number: %v", err)
	}
	if _, err := l.Next("p", Ask{Owner: Owner{Namespace: "other", Name: "x"}, Now: t0, PendingFor: time.Hour}); err != nil {
		t.Errorf("another namespace: %v", err)
	}
	if _, err := l.Next("p", Ask{Owner: owner("c"), Now: t0.Add(2 * time.Minute), PendingFor: time.Hour}); err != nil {
		t.Errorf("after a pick ran out: %v", err)
	}
}

func TestPoolChangesKeepAllocations(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009)})
	l.Observe(owner("a"), []uint16{30008}, t0)
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30003)})
	if len(l.PoolsOf(30008)) != 0 || len(l.Of(30008)) != 1 {
		t.Errorf("30008 is in pools %v, leased to %v", l.PoolsOf(30008), l.Of(30008))
	}
	if diff := cmp.Diff(Stats{Capacity: 4, Free: 4}, l.Stats("p")); diff != "" {
		t.Errorf("shrunk pool (-want +got):\n%s", diff)
	}
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009), Exclude: ports(30000, 30004)})
	if diff := cmp.Diff(Stats{Capacity: 10, Held: 1, Excluded: 5, Free: 4}, l.Stats("p")); diff != "" {
		t.Errorf("grown pool (-want +got):\n%s", diff)
	}
	l.DeletePool("p")
	if _, err := l.Next("p", Ask{Now: t0}); !errors.Is(err, ErrNoPool) {
		t.Errorf("next of a deleted pool: %v", err)
	}
}

func TestHugePool(t *testing.T) {
	l := New(Addresses())
	r, err := ParseRange("2001:db8::/64")
	if err != nil {
		t.Fatal(err)
	}
	l.SetPool(Pool[netip.Addr]{Name: "p", Spans: []Span[netip.Addr]{r.Span}, Exclude: r.Ends(), LowerBand: ServiceIPBand})
	for i := range uint64(1000) {
		v := mustNext(t, l, "p", Ask{Owner: owner(fmt.Sprint(i)), Now: t0, PendingFor: time.Hour, Random: rand.Uint64()})
		if !r.Contains(v) || v == r.First {
			t.Fatalf("picked %s", v)
		}
	}
	beyond := netip.MustParseAddr("2001:db8::ffff:0:0:1")
	if err := l.Take(beyond, Ask{Owner: owner("far"), Now: t0, PendingFor: time.Hour}); err != nil {
		t.Errorf("take an address beyond the bitmap: %v", err)
	}
	if got := l.Stats("p"); got.Pending != 1000 || got.Excluded != 1 {
		t.Errorf("stats %+v", got)
	}
}

func TestUnseenPicksAreSuspectAndLast(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009)})
	first := mustNext(t, l, "p", Ask{Owner: owner("a"), Now: t0, PendingFor: time.Second, SuspectFor: time.Hour})
	now := t0.Add(time.Minute)
	for i := range 9 {
		if got := mustNext(t, l, "p", Ask{Owner: owner(fmt.Sprint(i)), Now: now, PendingFor: time.Hour}); got == first {
			t.Fatalf("pick %d of 10 is the doubted value", i)
		}
	}
	if got := l.Stats("p"); got.Free != 1 {
		t.Errorf("stats %+v, want the doubted value counted as free", got)
	}
	if got := mustNext(t, l, "p", Ask{Owner: owner("last"), Now: now, PendingFor: time.Hour}); got != first {
		t.Errorf("last pick is %d, want the doubted %d", got, first)
	}

	l = New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30003), Exclude: ports(30003, 30003)})
	l.MarkSuspect(30000, t0, t0.Add(time.Hour))
	l.Observe(owner("holder"), []uint16{30002}, t0)
	if diff := cmp.Diff([]uint16{30001, 30000}, l.Unused()); diff != "" {
		t.Errorf("unused, the doubted one last (-want +got):\n%s", diff)
	}
	l.MarkVerified(30000, t0)
	if diff := cmp.Diff([]uint16{30000, 30001}, l.Unused()); diff != "" {
		t.Errorf("unused after trust (-want +got):\n%s", diff)
	}
}

// A pending value without a Service may have come into use after it was verified.
func TestMarkVerifiedEndsOlderSuspicionOnly(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30000)})
	mustNext(t, l, "p", Ask{Owner: owner("a"), Now: t0, PendingFor: time.Second, SuspectFor: time.Hour})
	l.Expire(t0.Add(10 * time.Second))
	for _, at := range []time.Duration{-time.Second, 0, 5 * time.Second, 10 * time.Second, flight - time.Second} {
		l.MarkVerified(30000, t0.Add(at))
		if got := strongest(l.Of(30000)); got != Suspect {
			t.Errorf("looked at %s after the pick: the value is %s", at, got)
		}
	}
	l.MarkVerified(30000, t0.Add(flight))
	if got := strongest(l.Of(30000)); got != Free {
		t.Errorf("looked at when the request was over: the value is %s", got)
	}
}

// A value that rests and is doubted stays doubted after the rest.
func TestQuarantineKeepsSuspicion(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30000), Quarantine: time.Second})
	l.Observe(owner("a"), []uint16{30000}, t0)
	l.Forget(owner("a"), t0)
	l.MarkSuspect(30000, t0, t0.Add(time.Hour))
	for _, at := range []time.Duration{2 * time.Second, time.Minute} {
		l.Expire(t0.Add(at))
		allocations := l.Of(30000)
		if len(allocations) != 1 || allocations[0].State != Suspect || allocations[0].Owner != (Owner{}) {
			t.Fatalf("%s later the allocations are %+v, want one doubt and nobody to go back to", at, allocations)
		}
	}
	l.Expire(t0.Add(time.Hour))
	if got := strongest(l.Of(30000)); got != Free {
		t.Errorf("an hour later the value is %s", got)
	}
}

// A pool of which nothing is known to be free gives all the same, and what is
// found to be free first.
func TestMarkUnverified(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009)})
	l.Observe(owner("holder"), []uint16{30009}, t0)
	l.MarkSuspect(30002, t0, t0.Add(time.Hour))
	l.MarkUnverified(t0, t0.Add(time.Hour))
	l.MarkVerified(30004, t0)
	l.MarkVerified(30009, t0)
	if got := mustNext(t, l, "p", Ask{Owner: owner("a"), Now: t0, PendingFor: time.Hour}); got != 30004 {
		t.Errorf("first pick %d, want the only one that is trusted", got)
	}
	seen := map[uint16]bool{30004: true, 30009: true}
	for i := range 8 {
		v := mustNext(t, l, "p", Ask{Owner: owner(fmt.Sprint(i)), Now: t0, PendingFor: time.Hour})
		if seen[v] {
			t.Errorf("%d was given twice", v)
		}
		seen[v] = true
		if v == 30002 && i != 7 {
			t.Errorf("the doubted value was given as number %d of 8", i+1)
		}
	}
	if _, err := l.Next("p", Ask{Owner: owner("late"), Now: t0}); !errors.Is(err, ErrFull) {
		t.Errorf("the eleventh pick of ten: %v", err)
	}
}

func TestBookedValuesAreSuspect(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30001)})
	l.SetBooked(30000, true)
	for _, at := range []time.Duration{0, 1000 * time.Hour} {
		v := mustNext(t, l, "p", Ask{Owner: owner("a"), Now: t0.Add(at), PendingFor: time.Second})
		if v != 30001 {
			t.Errorf("after %s: picked %d, which is booked", at, v)
		}
		l.Drop(v, owner("a"))
	}
	// A Service has it, loses it, and it stays booked.
	l.Observe(owner("b"), []uint16{30000}, t0)
	l.Forget(owner("b"), t0)
	l.Expire(t0.Add(time.Hour))
	if got := strongest(l.Of(30000)); got != Suspect {
		t.Errorf("a released value that is booked is %s", got)
	}
	l.SetBooked(30000, false)
	if got := strongest(l.Of(30000)); got != Free {
		t.Errorf("a value that is no longer booked is %s", got)
	}
}

// Allocations that only observe Services, as in a replica that does not lead, keep no more
// than what can still matter.
func TestObserveExpiresAllocations(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009), Quarantine: time.Minute})
	for i := range 1000 {
		now := t0.Add(time.Duration(i) * time.Hour)
		for _, v := range []uint16{30000 + uint16(i%10), 31000 + uint16(i)} { // in the pool and in none
			l.Observe(owner("a"), []uint16{v}, now)
			l.Forget(owner("a"), now)
		}
	}
	if len(l.ends.queue) > 4 || len(l.allocations) > 4 {
		t.Errorf("%d deadlines and %d allocations are left of 2,000 Services", len(l.ends.queue), len(l.allocations))
	}
}

// To take a value and give it back changes nothing, least of all what its former
// owner can come back to.
func TestDropUndoesNext(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30009), Quarantine: time.Minute})
	a := owner("a")
	l.Observe(a, []uint16{30003}, t0)
	l.Forget(a, t0)
	for range 2 {
		if err := l.Take(30003, Ask{Owner: a, Now: t0, PendingFor: time.Minute}); err != nil {
			t.Fatal(err)
		}
		l.Drop(30003, a)
		if diff := cmp.Diff([]uint16{30003}, l.Remembers(a)); diff != "" {
			t.Errorf("remembered after the pick was undone (-want +got):\n%s", diff)
		}
		if got := strongest(l.Of(30003)); got != Quarantined {
			t.Errorf("the value is %s, want it to rest as before", got)
		}
	}
	l.Drop(mustNext(t, l, "p", Ask{Owner: a, Now: t0, PendingFor: time.Minute}), a)
	if diff := cmp.Diff([]uint16{30003}, l.Remembers(a)); diff != "" {
		t.Errorf("a value that was never had is remembered (-want +got):\n%s", diff)
	}
}

// The API server may not have released a value yet. It stays quarantined for other Services
// once it has.
func TestDenyKeepsQuarantine(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30001), Quarantine: time.Minute})
	a := owner("a")
	l.SetBooked(30000, true)
	l.Observe(a, []uint16{30000}, t0)
	l.Forget(a, t0)
	if err := l.Take(30000, Ask{Owner: a, Now: t0, PendingFor: time.Minute}); err != nil {
		t.Fatal(err)
	}
	l.Deny(30000, a)
	if len(l.Remembers(a)) > 0 {
		t.Errorf("denied, yet remembered: %v", l.Remembers(a))
	}
	l.SetBooked(30000, false)
	if got := strongest(l.Of(30000)); got != Quarantined {
		t.Errorf("a denied value that is no longer booked is %s, want it to rest on", got)
	}
}

func TestFullErrorNextFree(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30002), Quarantine: time.Minute})
	next := func(now time.Time) time.Time {
		t.Helper()
		var full *FullError
		if _, err := l.Next("p", Ask{Owner: owner("b"), Now: now}); !errors.As(err, &full) {
			t.Fatalf("next of a full pool: %v", err)
		}
		return full.Next
	}
	l.SetBooked(30000, true) // for as long as anyone can tell
	l.Observe(owner("a"), []uint16{30001, 30002}, t0)
	if got := next(t0); !got.IsZero() {
		t.Errorf("held and booked values are free at %s", got)
	}
	l.Observe(owner("a"), []uint16{30001}, t0)
	if got, want := next(t0), t0.Add(time.Minute); !got.Equal(want) {
		t.Errorf("a resting value is free at %s, want %s", got, want)
	}
	if err := l.Take(30002, Ask{Owner: owner("c"), Now: t0, PendingFor: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if got, want := next(t0), t0.Add(time.Hour); !got.Equal(want) {
		t.Errorf("a resting value that was picked is free at %s, want %s", got, want)
	}
}

// The same calls give the same values, also where all are in doubt.
func TestEqualCallsGiveEqualAllocations(t *testing.T) {
	picks := func() (out []uint16) {
		l := New(Ports())
		l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30099), LowerBand: NodePortBand})
		for v := uint16(30040); v < 30080; v++ {
			l.MarkSuspect(v, t0, t0.Add(time.Hour))
		}
		l.MarkUnverified(t0, t0.Add(time.Hour))
		for i := range uint64(100) {
			out = append(out, mustNext(t, l, "p", Ask{Owner: owner(fmt.Sprint(i)), Now: t0, PendingFor: time.Hour, Random: i * 0x9e3779b97f4a7c15}))
		}
		return out
	}
	first := picks()
	if diff := cmp.Diff(first, picks()); diff != "" {
		t.Errorf("picks (-first +second):\n%s", diff)
	}
	for i, v := range first {
		if doubted := v >= 30040 && v < 30080; doubted != (i >= 60) {
			t.Errorf("pick %d is %d: the doubted values come last", i, v)
		}
		if band := v < 30016; band != (i >= 44 && i < 60) {
			t.Errorf("pick %d is %d: the lower band comes after the other unproven values", i, v)
		}
	}
}

// Excluded values are excluded, whatever is thought of them.
func TestExcludedValuesAreNeverFree(t *testing.T) {
	l := New(Ports())
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30003), Exclude: ports(30003, 30003)})
	want := Stats{Capacity: 4, Excluded: 1, Free: 3}
	l.Observe(owner("a"), []uint16{30003}, t0)
	if diff := cmp.Diff(Stats{Capacity: 4, Held: 1, Free: 3}, l.Stats("p")); diff != "" {
		t.Errorf("held (-want +got):\n%s", diff)
	}
	l.Forget(owner("a"), t0)
	if diff := cmp.Diff(want, l.Stats("p")); diff != "" {
		t.Errorf("just released, and so doubted (-want +got):\n%s", diff)
	}
	l.SetPool(Pool[uint16]{Name: "p", Spans: ports(30000, 30003), Exclude: ports(30003, 30003)})
	if diff := cmp.Diff(want, l.Stats("p")); diff != "" {
		t.Errorf("the same, computed again (-want +got):\n%s", diff)
	}
}

// Whatever happens, what is kept incrementally equals what a new allocations, told
// the outcome, computes; and nobody is given what somebody else has.
func TestIncrementalEqualsRebuilt(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := &walk{t: t, rng: rand.New(rand.NewPCG(seed, 1)), l: New(Ports()), now: t0, has: map[Owner][]uint16{}}
			w.repool()
			for range 400 {
				w.step()
			}
			w.check()
		})
	}
}

// walk is a random sequence of operations.
type walk struct {
	t     *testing.T
	rng   *rand.Rand
	l     *Allocations[uint16]
	now   time.Time
	specs []Pool[uint16]
	has   map[Owner][]uint16 // what was observed last
}

func (w *walk) owner() Owner {
	return Owner{Namespace: fmt.Sprint("ns", w.rng.IntN(3)), Name: fmt.Sprint("s", w.rng.IntN(8)), UID: fmt.Sprint(w.rng.IntN(2))}
}

// repool sets two pools, which may overlap, at random.
func (w *walk) repool() {
	w.specs = nil
	for _, name := range []string{"p", "q"} {
		at := uint16(w.rng.IntN(60))
		w.specs = append(w.specs, Pool[uint16]{
			Name:            name,
			Spans:           []PortRange{{at, at + uint16(w.rng.IntN(40))}, {at + 20, at + 25}},
			Exclude:         ports(at+3, at+4),
			Quarantine:      time.Duration(w.rng.IntN(3)) * time.Second,
			MaxPerNamespace: w.rng.IntN(2) * 9,
		})
		w.l.SetPool(w.specs[len(w.specs)-1])
	}
}

func (w *walk) step() {
	o, v := w.owner(), uint16(w.rng.IntN(120))
	ask := Ask{Owner: o, Now: w.now, PendingFor: time.Duration(w.rng.IntN(5)) * time.Second, SuspectFor: time.Duration(w.rng.IntN(2)*3) * time.Second, Random: w.rng.Uint64()}
	switch w.rng.IntN(11) {
	case 0, 1, 2:
		if v, err := w.l.Next([]string{"p", "q"}[w.rng.IntN(2)], ask); err == nil {
			for _, allocation := range w.l.Of(v) {
				if allocation.State > Suspect && allocation.Owner != o {
					w.t.Fatalf("picked %d for %s, which has allocations %v", v, o, w.l.Of(v))
				}
			}
		}
	case 3:
		own := slices.ContainsFunc(w.l.Of(v), func(allocation Allocation[uint16]) bool { return allocation.Owner.Is(o) })
		err := w.l.Take(v, ask)
		for other, values := range w.has {
			if err == nil && !own && !other.Is(o) && slices.Contains(values, v) {
				w.t.Fatalf("%s took %d, which %s holds", o, v, other)
			}
		}
	case 4, 5, 6:
		values := []uint16{v, uint16(w.rng.IntN(120))}[:1+w.rng.IntN(2)]
		w.l.Observe(o, values, w.now)
		w.has[o] = slices.Clone(values)
	case 7:
		w.l.Forget(o, w.now)
		delete(w.has, o)
	case 8:
		w.now = w.now.Add(time.Duration(w.rng.IntN(3000)) * time.Millisecond)
	case 9:
		w.l.Drop(v, o)
		if w.rng.IntN(10) == 0 {
			w.repool()
		}
	case 10:
		switch w.rng.IntN(4) {
		case 0:
			w.l.MarkUnverified(w.now, w.now.Add(time.Second))
		case 1:
			w.l.MarkVerified(v, w.now)
		case 2:
			w.l.SetBooked(v, w.rng.IntN(2) == 0)
		case 3:
			w.l.Deny(v, o)
		}
	}
}

func (w *walk) check() {
	w.t.Helper()
	w.l.Expire(w.now)
	fresh := New(Ports())
	for _, spec := range w.specs {
		fresh.SetPool(spec)
	}
	for allocation := range w.l.All() {
		if allocation.State != Held && !allocation.Until.After(w.now) {
			w.t.Errorf("%v should have ended by %v", allocation, w.now)
		}
		fresh.put(allocation)
	}
	for _, spec := range w.specs {
		if diff := cmp.Diff(fresh.Stats(spec.Name), w.l.Stats(spec.Name)); diff != "" {
			w.t.Errorf("%s (-rebuilt +incremental):\n%s", spec.Name, diff)
		}
		got, want := w.l.pools[spec.Name], fresh.pools[spec.Name]
		if diff := cmp.Diff(slices.Collect(want.taken.Runs()), slices.Collect(got.taken.Runs())); diff != "" {
			w.t.Errorf("%s: taken (-rebuilt +incremental):\n%s", spec.Name, diff)
		}
		if diff := cmp.Diff(slices.Collect(want.claimed.Runs()), slices.Collect(got.claimed.Runs())); diff != "" {
			w.t.Errorf("%s: claimed (-rebuilt +incremental):\n%s", spec.Name, diff)
		}
		if diff := cmp.Diff(want.perNamespace, got.perNamespace); diff != "" {
			w.t.Errorf("%s: per namespace (-rebuilt +incremental):\n%s", spec.Name, diff)
		}
	}
	if diff := cmp.Diff(fresh.Duplicates(), w.l.Duplicates()); diff != "" {
		w.t.Errorf("duplicates (-rebuilt +incremental):\n%s", diff)
	}
	for o, values := range w.has {
		if diff := cmp.Diff(values, w.l.Has(o)); diff != "" {
			w.t.Errorf("%s has (-want +got):\n%s", o, diff)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	l := New(Addresses())
	r, _ := ParseRange("10.96.0.0/12")
	l.SetPool(Pool[netip.Addr]{Name: "p", Spans: []Span[netip.Addr]{r.Span}, LowerBand: ServiceIPBand})
	o := Owner{Namespace: "shop", UID: "request"}
	for b.Loop() {
		v, err := l.Next("p", Ask{Owner: o, Now: t0, PendingFor: time.Minute, Random: rand.Uint64()})
		if err != nil {
			b.Fatal(err)
		}
		l.Drop(v, o)
		l.ends = deadlines[netip.Addr]{}
	}
}

// A restart with 50,000 Services must rebuild everything in under a second.
func BenchmarkRebuild50000(b *testing.B) {
	r, _ := ParseRange("10.96.0.0/12")
	for b.Loop() {
		addrs, nodePorts := New(Addresses()), New(Ports())
		addrs.SetPool(Pool[netip.Addr]{Name: "p", Spans: []Span[netip.Addr]{r.Span}})
		nodePorts.SetPool(Pool[uint16]{Name: "p", Spans: ports(1, 65535)})
		v := r.First
		for i := range 50000 {
			o := Owner{Namespace: "ns", Name: fmt.Sprint("service-", i), UID: fmt.Sprint(i)}
			v = v.Next()
			addrs.Observe(o, []netip.Addr{v}, t0)
			nodePorts.Observe(o, []uint16{uint16(i + 1)}, t0)
		}
	}
}
