// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

// Run runs the contract. open gives a new Backend over the same kernel each
// time and closes it when the test ends; nothing else may use it meanwhile.
func Run(t *testing.T, open func(testing.TB) backend.Backend) {
	t.Run("a second Sync changes nothing", func(t *testing.T) { syncTwice(t, open(t)) })
	t.Run("incremental equals full", func(t *testing.T) {
		for seed := range uint64(5) {
			t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { incremental(t, open, seed) })
		}
	})
	t.Run("a new process takes over", func(t *testing.T) { takeOver(t, open) })
	t.Run("Cleanup is idempotent", func(t *testing.T) { cleanup(t, open(t)) })
	t.Run("a cancelled Sync is an error", func(t *testing.T) { cancelled(t, open(t)) })
}

func world(seed uint64, changes int) *modeltest.World {
	w := modeltest.New(seed)
	for range changes {
		w.Change()
	}
	return w
}

func mustSync(t *testing.T, b backend.Backend, d model.Desired, changed []types.NamespacedName) Result {
	t.Helper()
	r, err := Sync(t.Context(), b, d, changed)
	if err != nil {
		t.Fatalf("Sync: %v", err)
	}
	return r
}

func mustCleanup(t *testing.T, b backend.Backend) {
	t.Helper()
	if err := Cleanup(context.Background(), b); err != nil {
		t.Fatalf("Cleanup: %v", err)
	}
}

// Differences returns how the kernel is other than d, in words.
func Differences(t testing.TB, b backend.Backend, d model.Desired) (differences []string) {
	t.Helper()
	state, err := b.(backend.Inspector).Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, diff := range inspect.Diff(d, state) {
		differences = append(differences, diff.String())
	}
	return differences
}

// unchanged fails unless the kernel has what it should, and a full Sync finds it so.
func unchanged(t *testing.T, b backend.Backend, d model.Desired, objects int) {
	t.Helper()
	for _, diff := range Differences(t, b, d) {
		t.Errorf("after Sync: %s", diff)
	}
	r := mustSync(t, b, d, nil)
	if r.Added != 0 || r.Deleted != 0 || r.Drift != 0 {
		t.Errorf("full Sync found something to do: %+v", r)
	}
	if r.Objects != objects {
		t.Errorf("full Sync counts %d objects, want %d as before", r.Objects, objects)
	}
}

func syncTwice(t *testing.T, b backend.Backend) {
	defer mustCleanup(t, b)
	d, _ := model.Compute(world(1, 100).Snapshot())
	r := mustSync(t, b, d, nil)
	if r.Added == 0 || r.Objects == 0 || !r.Full {
		t.Errorf("first Sync: %+v, want objects added by a full Sync", r)
	}
	unchanged(t, b, d, r.Objects)
	unchanged(t, b, d, r.Objects)
}

func incremental(t *testing.T, open func(testing.TB) backend.Backend, seed uint64) {
	b := open(t)
	defer mustCleanup(t, b)
	w := modeltest.New(seed)
	state := model.NewState(w.Node)
	mustSync(t, b, state.Desired(), nil)
	last := 0
	for step := range 150 {
		changed := []types.NamespacedName{}
		for range 1 + step%3 {
			name := w.Change()
			var changes []model.Change
			if in, ok := w.Input(name); ok {
				changes = state.Set(in)
			} else {
				changes = state.Delete(name)
			}
			for _, c := range changes {
				changed = append(changed, c.Name)
			}
		}
		r := mustSync(t, b, state.Desired(), changed)
		if r.Full {
			t.Fatalf("step %d: a change of %d Services was synced in full", step, len(changed))
		}
		last = r.Objects
	}
	unchanged(t, b, state.Desired(), last)
	// The reader of the kernel may share a mistake with the writer; a fresh
	// table cannot.
	mustCleanup(t, b)
	fresh := mustSync(t, b, state.Desired(), nil)
	if fresh.Objects != last {
		t.Errorf("a fresh Sync makes %d objects, %d were there", fresh.Objects, last)
	}
}

func takeOver(t *testing.T, open func(testing.TB) backend.Backend) {
	first := open(t)
	defer mustCleanup(t, first)
	w := world(2, 80)
	d, _ := model.Compute(w.Snapshot())
	r := mustSync(t, first, d, nil)
	second := open(t)
	got := mustSync(t, second, d, nil)
	if got.Added != 0 || got.Deleted != 0 || got.Drift != 0 || got.Objects != r.Objects {
		t.Errorf("the next process finds %+v, want %d objects in place and no drift", got, r.Objects)
	}
	// Services that went while no process ran are removed.
	for name, svc := range d.Services {
		// A backend may have been made for IPv4 alone.
		if !slices.ContainsFunc(svc.Frontends, func(f model.Frontend) bool { return f.Key.Family() == model.IPv4 }) {
			continue
		}
		gone := maps.Clone(d.Services)
		delete(gone, name)
		third := open(t)
		less := mustSync(t, third, model.Desired{Node: d.Node, Services: gone}, nil)
		if less.Deleted == 0 || less.Objects >= r.Objects {
			t.Errorf("without %s: %+v, want fewer than %d objects", name, less, r.Objects)
		}
		break
	}
}

func cleanup(t *testing.T, b backend.Backend) {
	mustCleanup(t, b)
	d, _ := model.Compute(world(3, 30).Snapshot())
	r := mustSync(t, b, d, nil)
	mustCleanup(t, b)
	mustCleanup(t, b)
	again := mustSync(t, b, d, nil)
	if again.Objects != r.Objects || again.Drift != 0 {
		t.Errorf("after Cleanup: %+v, want %d objects anew and no drift", again, r.Objects)
	}
	mustCleanup(t, b)
}

func cancelled(t *testing.T, b backend.Backend) {
	defer mustCleanup(t, b)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d, _ := model.Compute(world(4, 10).Snapshot())
	if _, err := Sync(ctx, b, d, nil); err == nil {
		t.Error("Sync with a cancelled context succeeded")
	}
	mustSync(t, b, d, []types.NamespacedName{}) // recovers although nothing changed
	r := mustSync(t, b, d, nil)
	if r.Drift != 0 || r.Added != 0 {
		t.Errorf("after recovery: %+v", r)
	}
}
