// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/backendtest"
)

// hearing is a Backend that listens, and somebody else who meddles.
type hearing struct {
	b     *Backend
	other *watched
	told  chan struct{}
}

func hear(t *testing.T, b *Backend, want model.Desired) *hearing {
	t.Helper()
	conn, err := nft.Dial()
	if err != nil {
		t.Fatal(err)
	}
	h := &hearing{b: b, other: &watched{conn: conn}, told: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- b.Watch(ctx, func() {
			select {
			case h.told <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	})
	<-h.told
	if b.Pinpointed() {
		t.Error("what happened before the watch began is said to be known")
	}
	mustSync(t, b, want)
	if !b.Pinpointed() {
		t.Error("nothing has happened since the full Sync, but that is said not to be known")
	}
	return h
}

// meddle commits, and waits until the Backend has heard of it: the last of the
// kernel's messages about it is that of the element with which it ends.
func (h *hearing) meddle(t *testing.T, tx *nft.Batch, last elementOf) {
	t.Helper()
	if err := h.other.conn.Commit(tx); err != nil {
		t.Fatal(err)
	}
	testkit.EventuallyTrue(t, 10*time.Second, "heard", func() bool {
		h.b.heard.mu.Lock()
		defer h.b.heard.mu.Unlock()
		d := &h.b.heard.damage
		if d.whole {
			return true
		}
		keys := d.keys[last.table.Family]
		return keys != nil && keys[last.set] != nil && (!last.set.flat() || keys[last.set][last.e.Key])
	})
}

type elementOf struct {
	table nft.Table
	set   setID
	e     nft.Element
}

// Whatever elements somebody takes, adds or changes, those alone are read and put
// back, with what is to change meanwhile and against the state before it.
func TestElementsAreRepairedAlone(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	world := worldOf(11, 60)
	node := world.Node
	node.MasqueradeAll = true
	state := model.NewState(node)
	source := withLoadBalancers{world}
	for _, n := range source.Names() {
		if in, ok := source.Input(n); ok {
			state.Set(in)
		}
	}
	want := state.Desired()
	h := hear(t, b, want)
	whole := h.other.contents(t)
	none := []types.NamespacedName{}
	rng := rand.New(rand.NewPCG(3, 5))
	for _, f := range model.Families {
		table := tableOf(f)
		all := sets(table)
		for id := setID(0); id < numSets; id++ {
			if !id.flat() {
				continue
			}
			old := h.other.elements(t, table, id.String())
			if len(old) == 0 {
				t.Errorf("%s %s has no element: the Services of this test must make one", table, id)
				continue
			}
			e := old[rng.IntN(len(old))]
			strange := nft.Element{Key: strings.Repeat("\x77", all[id].KeyLen()), Value: e.Value}
			changed := e
			if e.Value != "" {
				changed.Value = strings.Repeat("\x01", len(e.Value))
			}
			for _, m := range []struct {
				name  string
				last  nft.Element
				drift int
				does  func(*nft.Batch)
			}{
				{"takes", e, 1, func(tx *nft.Batch) { tx.DeleteElement(table, id.String(), e) }},
				{"adds", strange, 1, func(tx *nft.Batch) { tx.AddElement(table, id.String(), strange) }},
				{"changes", e, 1, func(tx *nft.Batch) {
					tx.DeleteElement(table, id.String(), e)
					tx.AddElement(table, id.String(), changed)
				}},
				{"takes and puts back", e, 0, func(tx *nft.Batch) {
					tx.DeleteElement(table, id.String(), e)
					tx.AddElement(table, id.String(), e)
				}},
			} {
				name := fmt.Sprintf("somebody %s an element of %s %s", m.name, table, id)
				if m.name == "changes" && e.Value == "" {
					continue
				}
				var tx nft.Batch
				m.does(&tx)
				h.meddle(t, &tx, elementOf{table, id, m.last})
				if !b.Pinpointed() {
					t.Errorf("%s: not said to be known", name)
				}
				report, err := backendtest.Sync(t.Context(), b, want, none)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if report.Full || report.Drift != m.drift {
					t.Errorf("%s: full %v, drift %d, want the one element to be read and %d", name, report.Full, report.Drift, m.drift)
				}
				if got := h.other.contents(t); !maps.EqualFunc(whole, got, slices.Equal) {
					t.Fatalf("%s: not repaired (-want +got):\n%s", name, cmp.Diff(whole, got))
				}
			}
		}
	}
}

// What others did to a Service that changes is put right before it changes, and
// the elements of Services that went are not put back.
func TestElementsAreRepairedAsTheyWere(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	want := desired(10, 3)
	h := hear(t, b, want)
	table := tableOf(model.IPv4)
	var gone, moved nft.Element
	newRenderer(model.IPv4).service(want.Services[name(4)], func(e element) {
		if e.set == setServices {
			gone = e.Element
		}
	})
	newRenderer(model.IPv4).service(want.Services[name(5)], func(e element) {
		if e.set == setEndpoints {
			moved = e.Element
		}
	})
	var tx nft.Batch
	tx.DeleteElement(table, setServices.String(), gone)
	tx.DeleteElement(table, setEndpoints.String(), moved)
	h.meddle(t, &tx, elementOf{table, setEndpoints, moved})
	next := desired(10, 3)
	delete(next.Services, name(4))
	next.Services[name(5)] = service(5, 2)
	report, err := backendtest.Sync(t.Context(), b, next, []types.NamespacedName{name(4), name(5)})
	if err != nil {
		t.Fatal(err)
	}
	if report.Full || report.Drift != 2 {
		t.Errorf("full %v, drift %d, want the two elements to be repaired alone", report.Full, report.Drift)
	}
	got := h.other.contents(t)
	if report, err := backendtest.Sync(t.Context(), b, next, nil); err != nil || report.Drift != 0 || report.Added+report.Deleted != 0 {
		t.Errorf("a full Sync afterwards: %v, drift %d, adds %d and deletes %d", err, report.Drift, report.Added, report.Deleted)
	}
	if again := h.other.contents(t); !maps.EqualFunc(again, got, slices.Equal) {
		t.Errorf("a full Sync afterwards changes (-want +got):\n%s", cmp.Diff(again, got))
	}
}

// More than elements, or a great many, have everything read back, even if only
// some Services are said to have changed.
func TestMoreThanElementsIsReadBackWhole(t *testing.T) {
	b := newBackend(t)
	defer mustCleanup(t, b)
	want := desired(400, 3)
	h := hear(t, b, want)
	whole := h.other.contents(t)
	table := tableOf(model.IPv6)
	for what, does := range map[string]func(*nft.Batch){
		"every endpoint goes": func(tx *nft.Batch) { tx.FlushSet(table, setEndpoints.String()) },
		"a rule goes":         func(tx *nft.Batch) { tx.FlushChain(table, chainPostrouting) },
		"a class goes":        func(tx *nft.Batch) { tx.DeleteElement(table, setClasses.String(), nft.Element{Key: number(3)}) },
		"the table goes":      func(tx *nft.Batch) { tx.DeleteTable(table) },
		"a set of somebody else comes": func(tx *nft.Batch) {
			tx.AddSet(nft.Set{Table: table, Name: "theirs", Key: []nft.Type{nft.TypeMark}})
		},
	} {
		var tx nft.Batch
		does(&tx)
		h.meddle(t, &tx, elementOf{table: table, set: setSourceRanges})
		if b.Pinpointed() {
			t.Errorf("%s: said to be known", what)
		}
		report, err := backendtest.Sync(t.Context(), b, want, []types.NamespacedName{})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !report.Full || report.Drift == 0 {
			t.Errorf("%s: full %v, drift %d", what, report.Full, report.Drift)
		}
		if got := h.other.contents(t); !maps.EqualFunc(whole, got, slices.Equal) {
			t.Fatalf("%s: not repaired (-want +got):\n%s", what, cmp.Diff(whole, got))
		}
	}
}
