// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// refusable is service(i, 2) with source ranges that overlap, which the kernel
// refuses; package model never gives such.
func refusable(i int) *model.Service {
	svc := service(i, 2)
	f := &svc.Frontends[0]
	f.Restricted = true
	f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25")}
	return svc
}

// allRules is what the kernel has, in no order.
func allRules(t *testing.T) string {
	t.Helper()
	return words(t, nstest.Run(t, "nft", "list", "ruleset"))
}

// lacking gives d without some Services, for a comparison.
func lacking(d model.Desired, names ...types.NamespacedName) model.Desired {
	less := model.Desired{Node: d.Node, Services: map[types.NamespacedName]*model.Service{}}
	for n, svc := range d.Services {
		less.Services[n] = svc
	}
	for _, n := range names {
		delete(less.Services, n)
	}
	return less
}

// What the kernel refuses of some Services holds nobody else up, whether the
// table is new, there already, or a few Services change.
func TestRejectedServicesAreSetAside(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	d := desired(300, 3)
	bad := []types.NamespacedName{name(17), name(170), name(171)}
	good := lacking(d, bad...)
	mustSync(t, b, good)
	want := allRules(t)
	for _, i := range []int{17, 170, 171} {
		d.Services[name(i)] = refusable(i)
	}
	check := func(changed ...types.NamespacedName) {
		t.Helper()
		r, err := backendtest.Sync(t.Context(), b, d, changed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(bad, r.Rejected); diff != "" {
			t.Errorf("refused (-want +got):\n%s", diff)
		}
		if len(r.Problems) != len(bad) || r.Problems[0].Reason != "RulesRejected" {
			t.Errorf("problems %v, want one for each", r.Problems)
		}
		if got := allRules(t); got != want {
			t.Error("the kernel does not have exactly the other Services")
		}
	}
	t.Run("changes", func(t *testing.T) { check(bad...) })
	t.Run("table that is there", func(t *testing.T) { check() })
	t.Run("new table", func(t *testing.T) { mustCleanup(t, b); check() })

	t.Run("others change meanwhile", func(t *testing.T) {
		d.Services[name(5)] = service(5, 2)
		r, err := backendtest.Sync(t.Context(), b, d, []types.NamespacedName{name(5)})
		if err != nil || r.Full || len(r.Rejected) != len(bad) {
			t.Errorf("%+v, %v: want a change that does not read back", r, err)
		}
		good.Services[name(5)] = d.Services[name(5)]
	})
	t.Run("mended", func(t *testing.T) {
		for _, i := range []int{17, 170, 171} {
			d.Services[name(i)] = service(i, 3)
		}
		r, err := backendtest.Sync(t.Context(), b, d, bad)
		if err != nil || len(r.Rejected)+len(r.Problems) > 0 || r.Full {
			t.Errorf("%+v, %v: want everybody accepted by a change", r, err)
		}
		got := allRules(t)
		mustCleanup(t, b)
		mustSync(t, b, d)
		if fresh := allRules(t); got != fresh {
			t.Error("mended Services are not as if they had never been refused")
		}
	})
}

// A Service that is refused keeps what it had, and others are changed by the
// same Sync.
func TestRefusedServiceKeepsItsOldRules(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	d := desired(20, 3)
	mustSync(t, b, d)
	next := lacking(d)
	next.Services[name(3)] = service(3, 1)
	mustSync(t, b, next)
	want := allRules(t)
	mustSync(t, b, d)

	next.Services[name(7)] = refusable(7) // had three endpoints without ranges
	r, err := backendtest.Sync(t.Context(), b, next, []types.NamespacedName{name(3), name(7)})
	if err != nil || len(r.Rejected) != 1 || r.Drift != 0 {
		t.Fatalf("%+v, %v: want one Service refused, and no drift", r, err)
	}
	if got := allRules(t); got != want {
		t.Error("the kernel does not have the old Service 7 and the new Service 3")
	}
	delete(next.Services, name(7))
	if r, err := backendtest.Sync(t.Context(), b, next, []types.NamespacedName{name(7)}); err != nil || len(r.Rejected) > 0 {
		t.Errorf("%+v, %v: want the old rules gone with their Service", r, err)
	}
	if r, err := backendtest.Sync(t.Context(), b, next, nil); err != nil || r.Added+r.Deleted+r.Drift > 0 {
		t.Errorf("%+v, %v: want nothing left to do", r, err)
	}
}

// If the kernel refuses more Services than can be bad by themselves, the Sync
// fails as a whole and the old state stays.
func TestTooManyRejectedServices(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	d := desired(1000, 2)
	mustSync(t, b, d)
	want := allRules(t)
	next := lacking(d)
	var changed []types.NamespacedName
	for i := range 1000 {
		next.Services[name(i)] = refusable(i)
		changed = append(changed, name(i))
	}
	if r, err := backendtest.Sync(t.Context(), b, next, changed); err == nil {
		t.Errorf("%+v, want an error", r)
	}
	if got := allRules(t); got != want {
		t.Error("the old state is not whole")
	}
	mustSync(t, b, d)
}

// suspecting is a Backend whose transactions are rejected while they are about more
// than one of some Services.
type suspecting struct {
	*Backend
	suspects []types.NamespacedName
}

func (s suspecting) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	for _, name := range s.suspects {
		if want.Services[name] != nil {
			return backend.Report{}, &backend.RejectedError{Services: s.suspects, Err: errors.New("bad")}
		}
	}
	return s.Backend.Resync(ctx, want)
}

// Without the kernel's word about the element, a whole message is suspected,
// and its Services are tried one by one.
func TestBlameOfAWholeMessage(t *testing.T) {
	b := newBackend(t)
	d := desired(50, 1)
	var elements []nft.Element
	f := b.families[0]
	for _, i := range []int{1, 2, 3} {
		f.render.service(d.Services[name(i)], func(e element) {
			if e.set == (use{}).of(setEndpoints) {
				elements = append(elements, e.Element)
			}
		})
	}
	err := errors.Join(&nft.Error{Op: "add", Err: errors.New("bad"), Table: f.table, Set: use{}.of(setEndpoints).String(), Elements: elements})
	got := b.blame(maps.Values(d.Services), nft.Refusals(err))
	slices.SortFunc(got, func(a, b types.NamespacedName) int { return strings.Compare(a.Name, b.Name) })
	if want := []types.NamespacedName{name(1), name(2), name(3)}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	r, err := backendtest.Sync(t.Context(), &suspecting{b, got}, d, nil)
	defer mustCleanup(t, b)
	if err != nil || len(r.Rejected) > 0 {
		t.Errorf("%+v, %v: want all accepted in the end", r, err)
	}
}
