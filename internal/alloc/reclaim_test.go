// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// Picks with which no Service is ever seen keep a pool, or a namespace's share of
// it, from others for two seconds, and go first from who has most of them.
func TestOldPendingValuesAreReclaimed(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	ask := func(namespace, name string, now time.Time) Ask {
		return Ask{Owner: Owner{Namespace: namespace, Name: name, UID: namespace + name}, Now: now, PendingFor: time.Minute}
	}
	r, err := ParseRange("10.96.0.1-10.96.0.8")
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{0, 4} {
		l := New(Addresses())
		l.SetPool(Pool[netip.Addr]{Name: "p", Spans: []Span[netip.Addr]{r.Span}, MaxPerNamespace: limit})
		mine, err := l.Next("p", ask("shop", "slow", at))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			if _, err := l.Next("p", ask("blue", fmt.Sprint("ghost-", i), at)); err != nil && limit == 0 {
				t.Fatal(err)
			}
		}
		if limit == 0 {
			if _, err := l.Next("p", ask("shop", "web", at.Add(time.Second))); !errors.Is(err, ErrFull) {
				t.Errorf("a moment later: %v, want %v", err, ErrFull)
			}
		} else if _, err := l.Next("p", ask("blue", "web", at.Add(time.Second))); !errors.Is(err, ErrQuota) {
			t.Errorf("a moment later: %v, want %v", err, ErrQuota)
		}
		later := at.Add(3 * time.Second)
		for _, namespace := range []string{"shop", "blue"} {
			if _, err := l.Next("p", ask(namespace, "web", later)); err != nil {
				t.Errorf("limit %d: a Service in %s: %v", limit, namespace, err)
			}
		}
		allocations := l.Of(mine)
		if len(allocations) != 1 || allocations[0].Owner.Name != "slow" {
			t.Errorf("limit %d: of the namespace with fewest picks one was taken: %v", limit, allocations)
		}
	}
}

// What a Service has been seen with is never taken back.
func TestHeldValuesAreNotReclaimed(t *testing.T) {
	at := time.Unix(1_000_000, 0)
	r, err := ParseRange("10.96.0.1-10.96.0.2")
	if err != nil {
		t.Fatal(err)
	}
	l := New(Addresses())
	l.SetPool(Pool[netip.Addr]{Name: "p", Spans: []Span[netip.Addr]{r.Span}})
	for i := range 2 {
		owner := Owner{Namespace: "shop", Name: fmt.Sprint(i), UID: fmt.Sprint(i)}
		v, err := l.Next("p", Ask{Owner: owner, Now: at, PendingFor: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		l.Observe(owner, []netip.Addr{v}, at)
	}
	if _, err := l.Next("p", Ask{Owner: Owner{Namespace: "shop", Name: "x"}, Now: at.Add(10 * time.Second), PendingFor: time.Minute}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want %v", err, ErrFull)
	}
}
