// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
	"github.com/causeway-lb/causeway/internal/testkit/nfttest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// fakeKernel refuses what the kernel refuses, and takes a transaction whole or
// not at all. With faults it fails at random: before a change, or behind it.
type fakeKernel struct {
	nftables *nfttest.Kernel
	built    map[model.Family]*program // by which the tables were written
	routes   bool
	rnd      *rand.Rand
	faults   int
}

var errFault = nfttest.ErrFault

func newFakeKernel() *fakeKernel {
	return &fakeKernel{nftables: nfttest.NewKernel(), built: map[model.Family]*program{}}
}

// fail lets one call in ten fail from now on, and as many behind what they do; with a
// nil rnd none does.
func (k *fakeKernel) fail(rnd *rand.Rand) {
	const requests = 50 // that reading the tables takes, about: a read is to fail as often as any call
	k.rnd = rnd
	k.nftables.Faults(rnd, 0.1/requests)
}

// try runs change with a fault before it, behind it, or none.
func (k *fakeKernel) try(change func() error) error {
	fault := func() bool {
		if k.rnd == nil || k.rnd.IntN(10) > 0 {
			return false
		}
		k.faults++
		return true
	}
	if fault() {
		return errFault
	}
	err := change()
	if fault() {
		return errFault
	}
	return err
}

// fakeTables notes by which programs tables were written.
type fakeTables struct {
	*tables
	*fakeKernel
}

func (k fakeTables) commit(rebuild []*program, edits []edit) error {
	return k.try(func() error {
		err := k.tables.commit(rebuild, edits)
		if err == nil {
			for _, p := range rebuild {
				k.built[p.fam] = p
			}
		}
		return err
	})
}

// elements are those that are there.
func (k *fakeKernel) elements(t testing.TB) elements.Map[setID] {
	t.Helper()
	found, _, err := newTables(k.nftables.Conn(), model.Families[:]).read()
	if err != nil {
		t.Fatal(err)
	}
	return found
}

type fakeRoutes struct{ *fakeKernel }

func (k fakeRoutes) ensure() (missing int, err error) {
	err = k.try(func() error {
		if !k.routes {
			missing = 2
		}
		k.routes = true
		return nil
	})
	return missing, err
}

func (k fakeRoutes) remove() error { return k.try(func() error { k.routes = false; return nil }) }

type fakeKeeper struct{ *fakeKernel }

func (k fakeKeeper) keep() (bool, error) { return false, k.try(func() error { return nil }) }
func (k fakeKeeper) remove() error       { return k.try(func() error { return nil }) }

func (k fakeKeeper) forget(elements.Map[setID]) error { return k.try(func() error { return nil }) }

func fakeBackend(t *testing.T, k *fakeKernel) *Backend {
	t.Helper()
	budget, err := newBudget(0)
	if err != nil {
		t.Fatal(err)
	}
	b := newBackend(Config{}.withDefaults(), budget, fakeTables{newTables(k.nftables.Conn(), model.Families[:]), k}, fakeRoutes{k}, fakeKeeper{k})
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// However the kernel fails, done or not, and whatever others do to the tables,
// the next Syncs converge to what faultless ones leave; and the proxy answers
// for what leads to it.
func TestConvergesAfterFaults(t *testing.T) {
	nstest.Require(t)
	faults := 0
	for seed := range uint64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			k := newFakeKernel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			k.fail(rnd)
			b := fakeBackend(t, k)
			w := modeltest.New(seed)
			st := model.NewState(w.Node)
			pending := map[types.NamespacedName]bool{}
			for step := range 100 {
				name := w.Change()
				var changes []model.Change
				if in, ok := w.Input(name); ok {
					changes = st.Set(in)
				} else {
					changes = st.Delete(name)
				}
				for _, c := range changes {
					pending[c.Name] = true
				}
				names := slices.Collect(maps.Keys(pending))
				if step%29 == 28 { // somebody deletes a table, and the monitor tells
					k.fail(nil)
					if err := k.nftables.Conn().RemoveTables(tableOf(model.IPv4)); err != nil {
						t.Fatal(err)
					}
					k.fail(rnd)
					names = nil
				}
				if step%41 == 40 { // a new process takes over
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
					b = fakeBackend(t, k)
				}
				if _, err := backendtest.Sync(t.Context(), b, st.Desired(), names); err == nil {
					clear(pending)
				} else if !errors.Is(err, errFault) {
					t.Fatalf("step %d: %v", step, err)
				}
			}
			faults += k.faults + k.nftables.Fault()
			k.fail(nil)
			report, err := backendtest.Sync(t.Context(), b, st.Desired(), nil)
			if err != nil {
				t.Fatal(err)
			}
			perfect := newFakeKernel()
			if _, err := backendtest.Sync(t.Context(), fakeBackend(t, perfect), st.Desired(), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(perfect.elements(t), k.elements(t)); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
			if report.Objects != len(k.elements(t)) || !k.routes {
				t.Errorf("%d objects reported of %d, routes %v", report.Objects, len(k.elements(t)), k.routes)
			}
			for f, p := range k.built {
				if !maps.Equal(p.at, b.proxy.at[f]) {
					t.Errorf("the %s table leads to %v, the proxy listens at %v", f, p.at, b.proxy.at[f])
				}
			}
			answers(t, b, st.Desired())
		})
	}
	if faults < 100 {
		t.Errorf("%d faults in all: too few to mean anything", faults)
	}
}

// answers checks that the proxy has the frontends of d, and no others.
func answers(t *testing.T, b *Backend, d model.Desired) {
	t.Helper()
	left := maps.Clone(b.proxy.frontends)
	for _, svc := range d.Services {
		for i := range svc.Frontends {
			m := &svc.Frontends[i]
			if !proxied(m.Protocol) {
				continue
			}
			f := left[m.Key]
			if f == nil || !f.model.Equal(m) || f.service != svc.Name {
				t.Errorf("the proxy's %s is not as desired", m.Key)
			}
			delete(left, m.Key)
		}
	}
	if len(left) > 0 {
		t.Errorf("the proxy answers for %v, which nobody wants", slices.Collect(maps.Keys(left)))
	}
}
