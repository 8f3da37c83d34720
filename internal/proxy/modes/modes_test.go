// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// node is a kernel that can do some modes and has objects of some.
type node struct {
	t *testing.T
	// lacks says when a mode turns out not to work: "open" or "sync".
	lacks map[Mode]string
	// fails are modes whose Sync fails for another reason.
	fails map[Mode]bool
	// objects are the modes that have some; busy ones keep them for a while.
	objects map[Mode]bool
	busy    map[Mode]int
	// stuck is a mode whose objects cannot be removed.
	stuck Mode
	// yields are of modes that do something ahead of another's taking over.
	yields map[Mode]func(context.Context) error
	log    []string
	open   int
}

func newNode(t *testing.T) *node {
	return &node{t: t, lacks: map[Mode]string{}, fails: map[Mode]bool{}, objects: map[Mode]bool{}, busy: map[Mode]int{}, yields: map[Mode]func(context.Context) error{}}
}

func (n *node) note(format string, args ...any) { n.log = append(n.log, fmt.Sprintf(format, args...)) }

type fake struct {
	*node
	mode Mode
}

type leavingFake struct{ fake }

var errBroken = errors.New("broken")

func (n *node) kinds() map[Mode]Kind {
	kinds := map[Mode]Kind{}
	for _, mode := range []Mode{NFTables, IPTables, IPVS, Userspace} {
		kinds[mode] = Kind{
			Open: func() (backend.Backend, error) {
				if n.lacks[mode] == "open" {
					return nil, &backend.UnsupportedError{Feature: string(mode)}
				}
				n.open++
				if mode == IPVS {
					return leavingFake{fake{n, mode}}, nil
				}
				return fake{n, mode}, nil
			},
			Present: func() (bool, error) { return n.objects[mode], nil },
			Yield:   n.yields[mode],
		}
	}
	return kinds
}

func (f fake) Name() string { return string(f.mode) }

func (f fake) Apply(context.Context, backend.Delta) (backend.Report, error) {
	return backend.Report{}, nil
}

func (f fake) Resync(context.Context, model.Desired) (backend.Report, error) {
	switch {
	case f.lacks[f.mode] == "sync":
		f.objects[f.mode] = true // it got halfway
		return backend.Report{}, fmt.Errorf("sync: %w", &backend.UnsupportedError{Feature: string(f.mode)})
	case f.fails[f.mode]:
		return backend.Report{}, errBroken
	}
	f.note("sync %s", f.mode)
	f.objects[f.mode] = true
	return backend.Report{}, nil
}

func (f fake) Cleanup(context.Context) error {
	if f.mode == f.stuck {
		return errBroken
	}
	f.note("clean %s", f.mode)
	delete(f.objects, f.mode)
	return nil
}

func (f fake) Close() error { f.open--; return nil }

func (f leavingFake) Leave(ctx context.Context) (bool, error) {
	if f.busy[f.mode] > 0 {
		f.busy[f.mode]--
		f.note("wait for %s", f.mode)
		return false, nil
	}
	return true, f.Cleanup(ctx)
}

func choose(t *testing.T, n *node, mode Mode) (*Chooser, *[]string) {
	t.Helper()
	var told []string
	c, err := New(Config{
		Mode: mode, Kinds: n.kinds(),
		FellBack: func(from, to Mode, why error) { told = append(told, fmt.Sprintf("%s -> %s: %v", from, to, why)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, &told
}

func TestChoice(t *testing.T) {
	for _, tc := range []struct {
		name  string
		mode  Mode
		lacks map[Mode]string
		want  Mode
		told  int
	}{
		{name: "auto takes nftables", mode: Auto, want: NFTables},
		{name: "auto without nftables", mode: Auto, lacks: map[Mode]string{NFTables: "open"}, want: IPTables, told: 1},
		{name: "auto without what the rules need", mode: Auto, lacks: map[Mode]string{NFTables: "sync"}, want: IPTables, told: 1},
		{name: "auto with nothing but userspace", mode: Auto, lacks: map[Mode]string{NFTables: "sync", IPTables: "open"}, want: Userspace, told: 1},
		{name: "userspace", mode: Userspace, want: Userspace},
		{name: "ipvs", mode: IPVS, want: IPVS},
		{name: "no ipvs", mode: IPVS, lacks: map[Mode]string{IPVS: "open"}, want: NFTables, told: 1},
		{name: "no ipvs, no nftables", mode: IPVS, lacks: map[Mode]string{IPVS: "open", NFTables: "sync"}, want: IPTables, told: 2},
		{name: "ipvs lacks at first Sync", mode: IPVS, lacks: map[Mode]string{IPVS: "sync"}, want: NFTables, told: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.lacks = tc.lacks
			c, told := choose(t, n, tc.mode)
			if _, err := c.Resync(t.Context(), model.Desired{}); err != nil {
				t.Fatal(err)
			}
			if c.Name() != string(tc.want) {
				t.Errorf("mode %s, want %s", c.Name(), tc.want)
			}
			if len(*told) != tc.told {
				t.Errorf("told of %q, want %d", *told, tc.told)
			}
			if diff := cmp.Diff(map[Mode]bool{tc.want: true}, n.objects); diff != "" {
				t.Errorf("objects (-want +got):\n%s", diff)
			}
			if n.open != 1 {
				t.Errorf("%d backends open, want one", n.open)
			}
		})
	}
}

// A mode that was asked for by name has no substitute, and the error says why.
func TestNothingWorks(t *testing.T) {
	n := newNode(t)
	n.lacks[NFTables] = "open"
	_, err := New(Config{Mode: NFTables, Kinds: n.kinds()})
	var lacks *backend.UnsupportedError
	if !errors.As(err, &lacks) || !strings.Contains(err.Error(), "nftables") {
		t.Errorf("error %v, want an UnsupportedError that names nftables", err)
	}
	n.lacks[IPTables], n.lacks[Userspace] = "sync", "sync"
	c, _ := choose(t, n, Auto)
	if _, err := c.Resync(t.Context(), model.Desired{}); !errors.As(err, &lacks) {
		t.Errorf("error %v, want an UnsupportedError", err)
	}
}

// A fault is not a lack: it is retried, and never ends in another mode.
func TestFaultsAreNotLacks(t *testing.T) {
	n := newNode(t)
	n.fails[NFTables] = true
	c, told := choose(t, n, Auto)
	if _, err := c.Resync(t.Context(), model.Desired{}); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
	n.fails[NFTables] = false
	if _, err := c.Resync(t.Context(), model.Desired{}); err != nil {
		t.Fatal(err)
	}
	n.lacks[NFTables] = "sync" // too late to choose
	if _, err := c.Resync(t.Context(), model.Desired{}); err == nil || c.Name() != "nftables" || len(*told) != 0 {
		t.Errorf("mode %s, error %v, told %q; the choice was made", c.Name(), err, *told)
	}
}

// The old mode's objects go after the new mode works, and not before its
// connections have ended.
func TestMakeBeforeBreak(t *testing.T) {
	n := newNode(t)
	n.objects[IPTables], n.objects[IPVS], n.busy[IPVS] = true, true, 2
	n.fails[NFTables] = true
	c, _ := choose(t, n, Auto)
	_, _ = c.Resync(t.Context(), model.Desired{})
	if len(n.log) > 0 {
		t.Errorf("before the new mode works: %q", n.log)
	}
	n.fails[NFTables] = false
	for range 4 {
		if _, err := c.Resync(t.Context(), model.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"sync nftables", "clean iptables", "wait for ipvs", "sync nftables", // again, without the other mode
		"sync nftables", "wait for ipvs", "sync nftables", "clean ipvs", "sync nftables", "sync nftables",
	}
	if diff := cmp.Diff(want, n.log); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if left := c.Remaining(); len(left) > 0 {
		t.Errorf("remaining %v", left)
	}
}

// Other modes yield ahead of what the new one does, and not once it works; one that
// cannot is told of, and the new mode works all the same.
func TestOthersYieldFirst(t *testing.T) {
	n := newNode(t)
	for _, mode := range []Mode{NFTables, Userspace} {
		n.yields[mode] = func(context.Context) error { n.note("%s yields", mode); return errBroken }
	}
	var told []string
	ctx := logr.NewContext(t.Context(), funcr.New(func(_, args string) { told = append(told, args) }, funcr.Options{}))
	c, _ := choose(t, n, NFTables)
	for range 2 {
		if _, err := c.Resync(ctx, model.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"userspace yields", "sync nftables", "sync nftables"}, n.log); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if len(told) != 1 || !strings.Contains(told[0], string(Userspace)) || !strings.Contains(told[0], errBroken.Error()) {
		t.Errorf("told %q, want the mode and the reason", told)
	}
}

// Objects of the old mode that cannot be removed are tried again; that is told,
// and does not keep the new mode from working.
func TestStuckObjectsAreTold(t *testing.T) {
	n := newNode(t)
	n.objects[IPTables], n.stuck = true, IPTables
	c, _ := choose(t, n, NFTables)
	var told []string
	ctx := logr.NewContext(t.Context(), funcr.New(func(_, args string) { told = append(told, args) }, funcr.Options{}))
	sync := func() {
		t.Helper()
		if _, err := c.Resync(ctx, model.Desired{}); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	if len(told) != 1 || !strings.Contains(told[0], string(IPTables)) || !strings.Contains(told[0], errBroken.Error()) {
		t.Errorf("told %q, want the mode and the reason", told)
	}
	n.stuck = ""
	sync()
	if len(told) != 1 || n.objects[IPTables] || len(c.Remaining()) > 0 {
		t.Errorf("later: told %q, objects %v, remaining %v", told, n.objects, c.Remaining())
	}
}

func TestCleanupRemovesAll(t *testing.T) {
	n := newNode(t)
	n.objects = map[Mode]bool{NFTables: true, IPTables: true, IPVS: true}
	n.busy[IPVS] = 5
	c, _ := choose(t, n, Auto)
	if err := c.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(n.objects) > 0 {
		t.Errorf("left: %v", n.objects)
	}
}

// Whoever waits for the watch before the first Sync must not wait for ever.
func TestWatchBeginsBeforeTheFirstSync(t *testing.T) {
	c, _ := choose(t, newNode(t), Auto)
	ctx, cancel := context.WithCancel(t.Context())
	began, ended := make(chan struct{}), make(chan error)
	go func() { ended <- c.Watch(ctx, func() { close(began) }) }()
	<-began
	if _, err := c.Resync(t.Context(), model.Desired{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// knowing is a Backend that knows, or not, what others did.
type knowing struct {
	backend.Backend
	pinpointed bool
}

func (k *knowing) Watch(ctx context.Context, notify func()) error { return nil }
func (k *knowing) Pinpointed() bool                               { return k.pinpointed }
func (k *knowing) Repair(context.Context, model.Desired) (backend.Report, error) {
	return backend.Report{}, nil
}

// Others' doings are known where the mode in use knows them, once it is chosen.
func TestPinpointedIsTheModesInUse(t *testing.T) {
	n := newNode(t)
	k := &knowing{pinpointed: true}
	kinds := n.kinds()
	open := kinds[NFTables].Open
	kinds[NFTables] = Kind{Open: func() (b backend.Backend, err error) { k.Backend, err = open(); return k, err }}
	c, err := New(Config{Mode: NFTables, Kinds: kinds})
	if err != nil {
		t.Fatal(err)
	}
	if c.Pinpointed() {
		t.Error("before the mode is chosen, all is said to be known")
	}
	if _, err := c.Resync(t.Context(), model.Desired{}); err != nil {
		t.Fatal(err)
	}
	if !c.Pinpointed() {
		t.Error("the mode in use knows, and the Chooser does not")
	}
	k.pinpointed = false
	if c.Pinpointed() {
		t.Error("the mode in use does not know, and the Chooser does")
	}
	other, _ := choose(t, newNode(t), IPTables)
	if _, err := other.Resync(t.Context(), model.Desired{}); err != nil {
		t.Fatal(err)
	}
	if other.Pinpointed() {
		t.Error("a mode that cannot tell is said to know")
	}
}

func TestParse(t *testing.T) {
	if m, err := Parse("ipvs"); err != nil || m != IPVS {
		t.Errorf("ipvs: %v, %v", m, err)
	}
	if _, err := Parse("ebpf"); err == nil || !strings.Contains(err.Error(), "choose from") {
		t.Errorf("an unknown mode: %v", err)
	}
}
