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

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// fakeKernel refuses what the kernel refuses, and takes a transaction whole or
// not at all. With rnd it fails now and then: before a change, or behind it.
type fakeKernel struct {
	elements elements
	built    map[model.Family]*program // by whom the tables were written
	routes   bool
	rnd      *rand.Rand
	faults   int
}

var errFault = errors.New("fault")

func newFakeKernel() *fakeKernel {
	return &fakeKernel{elements: elements{}, built: map[model.Family]*program{}}
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

func (k *fakeKernel) read() (found elements, broken []model.Family, err error) {
	err = k.try(func() error {
		found = maps.Clone(k.elements)
		for _, f := range model.Families {
			if k.built[f] == nil {
				broken = append(broken, f)
			}
		}
		return nil
	})
	return found, broken, err
}

func (k *fakeKernel) commit(rebuild []*program, edits []edit) error {
	return k.try(func() error {
		next, built := maps.Clone(k.elements), maps.Clone(k.built)
		anew := map[model.Family]bool{}
		for _, p := range rebuild {
			built[p.fam], anew[p.fam] = p, true
			maps.DeleteFunc(next, func(id elementID, _ string) bool { return id.family == p.fam })
		}
		for _, e := range edits {
			if !e.had || anew[e.id.family] {
				continue
			}
			if _, ok := next[e.id]; !ok {
				return fmt.Errorf("delete %v: not there", e.id)
			}
			delete(next, e.id)
		}
		for _, e := range edits {
			if !e.wants {
				continue
			}
			if _, ok := next[e.id]; ok || built[e.id.family] == nil {
				return fmt.Errorf("add %v: there already, or no table", e.id)
			}
			next[e.id] = e.value
		}
		k.elements, k.built = next, built
		return nil
	})
}

func (k *fakeKernel) remove() error {
	return k.try(func() error {
		clear(k.elements)
		clear(k.built)
		return nil
	})
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

func (k fakeKeeper) forget(elements) error { return k.try(func() error { return nil }) }

func fakeBackend(t *testing.T, k *fakeKernel) *Backend {
	t.Helper()
	budget, err := newBudget(0)
	if err != nil {
		t.Fatal(err)
	}
	b := newBackend(Config{}.withDefaults(), budget, k, fakeRoutes{k}, fakeKeeper{k})
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
			k.rnd = rand.New(rand.NewPCG(seed, 1))
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
					delete(k.built, model.IPv4)
					maps.DeleteFunc(k.elements, func(id elementID, _ string) bool { return id.family == model.IPv4 })
					names = nil
				}
				if step%41 == 40 { // a new process takes over
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
					b = fakeBackend(t, k)
				}
				if _, err := b.Sync(t.Context(), st.Desired(), names); err == nil {
					clear(pending)
				} else if !errors.Is(err, errFault) {
					t.Fatalf("step %d: %v", step, err)
				}
			}
			faults += k.faults
			k.rnd = nil
			report, err := b.Sync(t.Context(), st.Desired(), nil)
			if err != nil {
				t.Fatal(err)
			}
			perfect := newFakeKernel()
			if _, err := fakeBackend(t, perfect).Sync(t.Context(), st.Desired(), nil); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(perfect.elements, k.elements, cmp.AllowUnexported(elementID{})); diff != "" {
				t.Errorf("elements (-want +got):\n%s", diff)
			}
			if report.Objects != len(k.elements) || !k.routes {
				t.Errorf("%d objects reported of %d, routes %v", report.Objects, len(k.elements), k.routes)
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
