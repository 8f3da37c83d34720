// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

// kernel is a Backend over a map. Like a real one it checks that what it changes is
// as it left it.
type kernel struct {
	mu       sync.Mutex
	services map[types.NamespacedName]*model.Service // what the kernel has
	known    map[types.NamespacedName]*model.Service // what the backend thinks it has
	dirty    bool
	syncs    int
	notify   func()
	// fail decides about a Sync: nil is success, done also applies it.
	fail func() (err error, done bool)
	// reject decides about a Service's change.
	reject func(types.NamespacedName) bool
}

func newKernel() *kernel {
	return &kernel{services: map[types.NamespacedName]*model.Service{}, dirty: true}
}

func (k *kernel) Name() string                  { return "fake" }
func (k *kernel) Close() error                  { return nil }
func (k *kernel) Cleanup(context.Context) error { return nil }

var errStale = errors.New("the kernel is not as the backend left it")

func (k *kernel) Resync(_ context.Context, want model.Desired) (backend.Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var report backend.Report
	for name, svc := range k.services {
		if !k.known[name].Equal(svc) {
			report.Drift++
		}
	}
	return k.commit(maps.Clone(want.Services), maps.Keys(want.Services), report)
}

func (k *kernel) Apply(_ context.Context, step backend.Delta) (backend.Report, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dirty {
		return backend.Report{}, errors.New("applied without a Resync after an error")
	}
	next := maps.Clone(k.services)
	var names []types.NamespacedName
	for _, c := range step.Services {
		if !c.Old.Equal(k.known[c.Name]) || !k.known[c.Name].Equal(k.services[c.Name]) {
			k.dirty = true
			return backend.Report{}, errStale
		}
		names = append(names, c.Name)
		if c.New != nil {
			next[c.Name] = c.New
		} else {
			delete(next, c.Name)
		}
	}
	return k.commit(next, slices.Values(names), backend.Report{})
}

// commit makes next what the kernel has, unless it fails or rejects some of names.
func (k *kernel) commit(next map[types.NamespacedName]*model.Service, names iter.Seq[types.NamespacedName], report backend.Report) (backend.Report, error) {
	k.syncs++
	var err error
	done := true
	if k.fail != nil {
		err, done = k.fail()
	}
	var rejected []types.NamespacedName
	for name := range names {
		if k.reject != nil && !next[name].Equal(k.known[name]) && k.reject(name) {
			rejected = append(rejected, name)
		}
	}
	if err == nil && len(rejected) > 0 {
		return backend.Report{}, &backend.RejectedError{Services: rejected, Err: errors.New("rejected")}
	}
	if err == nil || done {
		k.services = next
	}
	k.dirty = err != nil
	if err != nil {
		return backend.Report{}, err
	}
	k.known = maps.Clone(next)
	report.Objects = len(next)
	return report, nil
}

func (k *kernel) Watch(ctx context.Context, notify func()) error {
	k.mu.Lock()
	k.notify = notify
	k.mu.Unlock()
	notify()
	<-ctx.Done()
	return nil
}

// harm is what somebody else does to the kernel.
func (k *kernel) harm(f func(map[types.NamespacedName]*model.Service)) {
	k.mu.Lock()
	k.services = maps.Clone(k.services)
	f(k.services)
	notify := k.notify
	k.mu.Unlock()
	if notify != nil {
		notify()
	}
}

func (k *kernel) has() map[types.NamespacedName]*model.Service {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.services)
}

// world is a Source that is safe for concurrent use.
type world struct {
	mu sync.Mutex
	w  *modeltest.World
}

func (w *world) Names() []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Names()
}

func (w *world) Input(n types.NamespacedName) (model.Input, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Input(n)
}

func (w *world) change() types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Change()
}

func (w *world) desired(node model.Node) model.Desired {
	w.mu.Lock()
	defer w.mu.Unlock()
	snap := w.w.Snapshot()
	snap.Node = node
	d, _ := model.Compute(snap)
	return d
}

func start(t *testing.T, cfg Config) *Syncer {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s
}

func run(t *testing.T, s *Syncer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func equal(a, b map[types.NamespacedName]*model.Service) bool {
	return maps.EqualFunc(a, b, func(x, y *model.Service) bool { return x.Equal(y) })
}

// Whatever fails and whoever interferes, the kernel ends up as desired; and
// who follows the Applied calls knows what the kernel has.
func TestConverges(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, k := &world{w: modeltest.New(seed)}, newKernel()
				r := rand.New(rand.NewPCG(seed, 1))
				var rmu sync.Mutex
				failing := true
				k.fail = func() (error, bool) {
					rmu.Lock()
					defer rmu.Unlock()
					if failing && r.IntN(6) == 0 {
						return errors.New("refused"), r.IntN(2) == 0 // half of them did it all the same
					}
					return nil, true
				}
				k.reject = func(types.NamespacedName) bool {
					rmu.Lock()
					defer rmu.Unlock()
					return failing && r.IntN(8) == 0
				}
				followed := map[types.NamespacedName]*model.Service{}
				var fmu sync.Mutex
				node := w.w.Node
				s := start(t, Config{Backend: k, Source: w, Node: node, Applied: func(a Applied) {
					fmu.Lock()
					defer fmu.Unlock()
					for _, c := range a.Changes {
						if !followed[c.Name].Equal(c.Old) {
							t.Errorf("change of %s does not begin where the last one ended", c.Name)
						}
						if followed[c.Name] = c.New; c.New == nil {
							delete(followed, c.Name)
						}
					}
				}})
				for step := range 200 {
					s.Notify(w.change(), time.Time{})
					switch {
					case step%37 == 0:
						k.harm(func(m map[types.NamespacedName]*model.Service) { clear(m) })
					case step%53 == 0:
						node.Zone = fmt.Sprint("zone-", step)
						s.SetNode(node)
					case step%5 == 0:
						time.Sleep(time.Millisecond)
					}
				}
				rmu.Lock()
				failing = false
				rmu.Unlock()
				want := w.desired(node).Services
				testkit.EventuallyTrue(t, 20*time.Second, "as desired", func() bool { return equal(want, k.has()) && s.Status().InSync })
				testkit.EventuallyTrue(t, 20*time.Second, "followed", func() bool { fmu.Lock(); defer fmu.Unlock(); return equal(want, followed) })
			})
		})
	}
}

func TestDriftIsRepairedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := &world{w: modeltest.New(1)}, newKernel()
		for range 50 {
			w.change()
		}
		told := make(chan backend.Report, 10)
		s := start(t, Config{Backend: k, Source: w, Node: w.w.Node, Drifted: func(r backend.Report) { told <- r }})
		want := w.desired(w.w.Node).Services
		testkit.EventuallyTrue(t, 20*time.Second, "in sync", func() bool { return s.Status().InSync })
		k.harm(func(m map[types.NamespacedName]*model.Service) {
			for name := range m {
				m[name] = &model.Service{Name: name}
				break
			}
		})
		testkit.EventuallyTrue(t, 20*time.Second, "repaired", func() bool { return equal(want, k.has()) })
		if r := <-told; r.Drift != 1 {
			t.Errorf("told of %d objects, want 1", r.Drift)
		}
	})
}

// repairer is a Backend that hears in detail what others do, if pinpointed.
type repairer struct {
	*kernel
	pinpointed atomic.Bool
	asked      chan string // the calls
}

func (r *repairer) Pinpointed() bool { return r.pinpointed.Load() }

func (r *repairer) Resync(ctx context.Context, want model.Desired) (backend.Report, error) {
	report, err := r.kernel.Resync(ctx, want)
	r.asked <- "resync"
	return report, err
}

func (r *repairer) Repair(context.Context, model.Desired) (backend.Report, error) {
	r.asked <- "repair"
	return backend.Report{}, nil
}

// Everything is read back for others' changes only if the Backend does not know
// where they are; and what was asked for is read back in any case.
func TestWhatIsPinpointedIsNotReadBackWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{w: modeltest.New(1)}
		for range 50 {
			w.change()
		}
		b := &repairer{kernel: newKernel(), asked: make(chan string, 10)}
		b.pinpointed.Store(true)
		s := start(t, Config{Backend: b, Source: w, Node: w.w.Node})
		if <-b.asked != "resync" {
			t.Error("the first call does not read everything back")
		}
		untouched := func(map[types.NamespacedName]*model.Service) {}
		b.harm(untouched)
		if call := <-b.asked; call != "repair" {
			t.Errorf("%s of a known change by others, want repair", call)
		}
		b.pinpointed.Store(false)
		b.harm(untouched)
		if call := <-b.asked; call != "resync" {
			t.Errorf("%s of an unknown change by others, want resync", call)
		}
		b.pinpointed.Store(true)
		s.Verify()
		if call := <-b.asked; call != "resync" {
			t.Errorf("%s although the kernel is to be read back, want resync", call)
		}
	})
}

// A Service that the kernel refuses is told of, tried again without a reason,
// and holds nobody else up.
func TestRefusedServiceIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := &world{w: modeltest.New(4)}, newKernel()
		for range 50 {
			w.change()
		}
		want := w.desired(w.w.Node).Services
		var bad types.NamespacedName
		for name := range want {
			bad = name
		}
		var refusing atomic.Bool
		refusing.Store(true)
		k.reject = func(name types.NamespacedName) bool { return name == bad && refusing.Load() }
		s := start(t, Config{Backend: k, Source: w, Node: w.w.Node})
		less := maps.Clone(want)
		delete(less, bad)
		testkit.EventuallyTrue(t, 20*time.Second, "the others programmed, and the Service told of", func() bool {
			st := s.Status()
			return st.InSync && slices.Equal(st.Rejected, []types.NamespacedName{bad}) && equal(less, k.has())
		})
		refusing.Store(false)
		testkit.EventuallyTrue(t, 20*time.Second, "accepted", func() bool { return len(s.Status().Rejected) == 0 && equal(want, k.has()) })
	})
}

func TestFailureIsVisibleUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := &world{w: modeltest.New(2)}, newKernel()
		refused := errors.New("refused")
		var mu sync.Mutex
		fail := error(nil)
		k.fail = func() (error, bool) { mu.Lock(); defer mu.Unlock(); return fail, false }
		s := start(t, Config{Backend: k, Source: w, Node: w.w.Node})
		watch := s.Watch()
		testkit.EventuallyTrue(t, 20*time.Second, "in sync", func() bool { return s.Status().InSync })
		mu.Lock()
		fail = refused
		mu.Unlock()
		for range 20 { // some changes concern no frontend
			s.Notify(w.change(), time.Time{})
		}
		testkit.EventuallyTrue(t, 20*time.Second, "out of sync", func() bool { st := s.Status(); return !st.InSync && st.Started && errors.Is(st.Err, refused) })
		mu.Lock()
		fail = nil
		mu.Unlock()
		testkit.EventuallyTrue(t, 20*time.Second, "in sync again", func() bool { st := s.Status(); return st.InSync && st.Err == nil })
		select {
		case <-watch:
		default:
			t.Error("Watch did not hear of any of it")
		}
	})
}

// What comes in while the kernel is busy is programmed together.
func TestBurstsAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, k := &world{w: modeltest.New(3)}, newKernel()
		gate := make(chan struct{})
		var once sync.Once
		k.fail = func() (error, bool) { once.Do(func() { <-gate }); return nil, true }
		s := start(t, Config{Backend: k, Source: w, Node: w.w.Node})
		for range 500 {
			s.Notify(w.change(), time.Time{})
		}
		close(gate)
		want := w.desired(w.w.Node).Services
		testkit.EventuallyTrue(t, 20*time.Second, "as desired", func() bool { return equal(want, k.has()) })
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.syncs > 10 {
			t.Errorf("%d syncs for one burst", k.syncs)
		}
	})
}

// rivals are Services that want the same address, the older ones first.
type rivals struct {
	mu    sync.Mutex
	names []string
}

func (r *rivals) Names() (names []types.NamespacedName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.names {
		names = append(names, types.NamespacedName{Namespace: "default", Name: n})
	}
	return names
}

func (r *rivals) Input(n types.NamespacedName) (model.Input, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.names, n.Name) {
		return model.Input{}, false
	}
	age := int64(n.Name[0]) // a is the oldest
	return model.Input{Service: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name, CreationTimestamp: metav1.NewTime(time.Unix(age, 0))},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: []corev1.ServicePort{{Port: 80}}},
	}}, true
}

func (r *rivals) set(s *Syncer, changed string, names ...string) {
	r.mu.Lock()
	r.names = names
	r.mu.Unlock()
	s.Notify(types.NamespacedName{Namespace: "default", Name: changed}, time.Time{})
}

// Whoever gains or loses an address by another Service's coming or going is told,
// and so is who loses it to another one than before.
func TestRivalsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		told := map[string]string{} // loser -> winner
		source := &rivals{names: []string{"c", "b"}}
		s := start(t, Config{Backend: newKernel(), Source: source, Problems: func(n types.NamespacedName, ps []model.Problem) {
			mu.Lock()
			defer mu.Unlock()
			delete(told, n.Name)
			for _, p := range ps {
				_, text, _ := strings.Cut(p.Message, "belongs to Service default/")
				told[n.Name], _, _ = strings.Cut(text, ",")
			}
		}})
		is := func(want map[string]string) {
			t.Helper()
			testkit.EventuallyTrue(t, 20*time.Second, fmt.Sprintf("told %v", want), func() bool { mu.Lock(); defer mu.Unlock(); return maps.Equal(want, told) })
		}
		is(map[string]string{"c": "b"})
		source.set(s, "a", "c", "b", "a")
		is(map[string]string{"b": "a", "c": "a"})
		source.set(s, "a", "c", "b")
		is(map[string]string{"c": "b"})
		source.set(s, "b", "c")
		is(map[string]string{})
	})
}

// fixed is a Source that does not change.
type fixed map[types.NamespacedName]model.Input

func (f fixed) Names() []types.NamespacedName { return slices.Collect(maps.Keys(f)) }
func (f fixed) Input(n types.NamespacedName) (model.Input, bool) {
	in, ok := f[n]
	return in, ok
}

// A large Service's change does not hold up others that come with it, and is
// never left for long.
func TestBigServicesComeAfterSmallOnes(t *testing.T) {
	name := func(n string) types.NamespacedName { return types.NamespacedName{Namespace: "default", Name: n} }
	input := func(ports int) model.Input {
		return model.Input{Service: &corev1.Service{Spec: corev1.ServiceSpec{Ports: make([]corev1.ServicePort, ports)}}}
	}
	s, err := New(Config{
		Backend: newKernel(), Source: fixed{name("big"): input(bigService + 1), name("big-too"): input(16000), name("small"): input(1), name("other"): input(3)},
		Metrics: NewMetrics("x"),
	})
	if err != nil {
		t.Fatal(err)
	}
	next := func(notified ...string) string {
		for _, n := range notified {
			s.Notify(name(n), time.Time{})
		}
		in := s.inbox.take()
		s.postpone(in.services)
		var names []string
		for n := range in.services {
			names = append(names, n.Name)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	for i, step := range []struct {
		notify []string
		want   string
	}{
		{[]string{"big", "small", "gone"}, "gone small"},
		{nil, "big"},
		{[]string{"big"}, "big"},
		{[]string{"big", "big-too"}, "big big-too"},
		{[]string{"small", "big"}, "small"},
		{[]string{"other", "big-too"}, "big other"}, // big was left once, big-too is now
		{[]string{"small", "big"}, "big-too small"},
		{nil, "big"},
		{nil, ""},
	} {
		if got := next(step.notify...); got != step.want {
			t.Errorf("step %d: %q is programmed, want %q", i, got, step.want)
		}
	}
}
