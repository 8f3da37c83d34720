// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

func TestConfigValidate(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config is accepted")
	}
}

// TestRandomHistories drives two provisioners over one store that fails at random,
// with watches that lag, through random requests, and checks after each step
// that no address has two owners that do not share it, and in the end that
// everybody holds just what was asked for and the indexes are what a fresh
// start would make them.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomLife(t, seed) })
	}
}

func randomLife(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	s := newStore(seed, 0.2)
	quarantine := time.Duration(random.IntN(2)) * time.Minute
	makeWorld := func() *world {
		a := with(pool("a", "192.0.2.0/29", "2001:db8::/125"), func(p *Pool) { p.Quarantine = quarantine })
		return newWorld(s, a, with(pool("b", "198.51.100.0/29"), func(p *Pool) { p.AutoAssign = false }))
	}
	worlds := []*world{makeWorld(), makeWorld()}
	names := []string{"p", "q", "r", "s", "t", "u"}
	wants := map[string]provisioner.Request{}
	for range 150 {
		w := worlds[random.IntN(2)]
		name := names[random.IntN(len(names))]
		switch random.IntN(8) {
		case 0:
			delete(wants, name)
			_ = w.Release(t.Context(), owner(name)) // as often as not it fails: tried again below
		case 1:
			w.watch.catchUp(random.IntN(5))
		case 2: // killed, and started again from what the API server has
			i := random.IntN(2)
			worlds[i] = makeWorld()
			worlds[i].watch.catchUp(-1)
		default:
			req := randomRequest(random, name)
			for _, x := range worlds {
				x.ports[req.Owner.String()] = req.Ports
			}
			wants[name] = req
			w.watch.catchUp(random.IntN(3))
			_, _ = w.Allocate(t.Context(), req)
		}
		storeIsValid(t, s)
	}
	s.failing = 0
	settle(t, worlds[0], names, wants)
	for _, w := range worlds {
		w.consistent(t)
	}
}

func randomRequest(random *rand.Rand, name string) provisioner.Request {
	req := request(name)
	if random.IntN(3) == 0 {
		req.Families, req.Policy = dualFamilies, corev1.IPFamilyPolicyPreferDualStack
	}
	if random.IntN(3) == 0 {
		req.SharingKey = "k"
	}
	req.Ports = []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: uint16(80 + random.IntN(3))}}
	switch random.IntN(5) {
	case 0:
		req.Pool = "b"
	case 1:
		req.Addresses = addrs(fmt.Sprintf("192.0.2.%d", random.IntN(8)))
	}
	return req
}

// storeIsValid checks the records after every step: among others, that only
// Services with one key are together.
func storeIsValid(t *testing.T, s *store) {
	t.Helper()
	for a, r := range s.copies() {
		if err := valid(r); err != nil {
			t.Fatalf("%s: %v", a, err)
		}
	}
}

// settle is what the reconciler does after the storm: everything again until
// nothing changes.
func settle(t *testing.T, w *world, names []string, wants map[string]provisioner.Request) {
	t.Helper()
	for range 5 {
		for _, name := range names {
			w.watch.catchUp(-1)
			req, wanted := wants[name]
			if !wanted {
				if err := w.Release(t.Context(), owner(name)); err != nil {
					t.Fatal(err)
				}
				continue
			}
			got, err := w.Allocate(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if got.Unmet == nil && len(got.Addresses) != max(len(req.Families), len(req.Addresses)) {
				t.Errorf("%s holds %v, asked for %+v", name, got.Addresses, req)
			}
		}
	}
	held := map[string]int{}
	for _, r := range w.store.copies() {
		for _, o := range r.Owners {
			held[o.Name]++
		}
	}
	for _, name := range names {
		if _, wanted := wants[name]; !wanted && held[name] > 0 {
			t.Errorf("%s holds %d addresses after release", name, held[name])
		}
	}
}

func TestReserve(t *testing.T) {
	s := newStore(1, 0)
	w := newWorld(s, with(pool("a", "192.0.2.0/24"), func(p *Pool) { p.Disabled = true }))
	if err := w.Reserve(t.Context(), request("web"), addrs("192.0.2.77")); err != nil {
		t.Fatalf("address in use, disabled pool: %v", err)
	}
	if err := w.Reserve(t.Context(), request("web"), addrs("192.0.2.78")); err != nil {
		t.Fatalf("it holds one of the family: %v", err)
	}
	if got := w.Index.AddressesOf(owner("web")); len(got) != 1 || got[0] != addr("192.0.2.77") {
		t.Errorf("held: %v", got)
	}
	var refused *provisioner.AllocationError
	if err := w.Reserve(t.Context(), request("thief"), addrs("192.0.2.77")); !errors.As(err, &refused) || refused.Reason != provisioner.ReasonAddressInUse {
		t.Errorf("somebody else's address: %v", err)
	}
	w.consistent(t)
}

func TestSameNameOtherUID(t *testing.T) {
	w := newWorld(newStore(1, 0), pool("a", "192.0.2.0/24"))
	first, err := w.Allocate(t.Context(), request("web"))
	if err != nil {
		t.Fatal(err)
	}
	again := request("web")
	again.Owner.UID = "another"
	second, err := w.Allocate(t.Context(), again)
	if err != nil || second.Addresses[0] != first.Addresses[0] {
		t.Fatalf("got %v, %v, want %v", second.Addresses, err, first.Addresses)
	}
	if r := w.store.copies()[first.Addresses[0]]; len(r.Owners) != 1 || r.Owners[0].UID != "another" {
		t.Errorf("owners: %v", r.Owners)
	}
}

func TestRecordFollowsItsPool(t *testing.T) {
	w := newWorld(newStore(1, 0), pool("a", "192.0.2.0/24"))
	if _, err := w.Allocate(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	w.Index.DeletePool("a")
	w.Index.SetPool(pool("b", "192.0.2.0/25"))
	if got := w.Index.Mismatched(); len(got) != 1 || !got[0].Is(owner("web")) {
		t.Fatalf("strays: %v", got)
	}
	if _, err := w.Allocate(t.Context(), request("web")); err != nil {
		t.Fatal(err)
	}
	if r := w.store.copies()[addr("192.0.2.1")]; r.Pool != "b" {
		t.Errorf("the record names pool %s, want b", r.Pool)
	}
	w.consistent(t)
}

// TestAllocateTwentyThousand is 20,000 allocations from a /16 by two controllers at
// once, each with several workers, five of which are killed on the way and
// replaced by one that starts from the API server's state. Nothing is given
// twice, and the controllers' own time stays far below five seconds.
func TestAllocateTwentyThousand(t *testing.T) {
	const services, kills = 20000, 5
	s := newStore(1, 0)
	start := func() (*world, context.Context, context.CancelFunc) {
		w := newWorld(s, pool("a", "198.18.0.0/16"))
		w.watch.catchUp(-1)
		ctx, cancel := context.WithCancel(t.Context())
		return w, ctx, cancel
	}
	todo := make(chan int, services)
	for i := range services {
		todo <- i
	}
	var mu sync.Mutex
	given := map[netip.Addr]int{}
	work := func(w *world, ctx context.Context, n int) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range n {
					var i int
					select {
					case i = <-todo:
					default:
						return
					}
					got, err := w.Allocate(ctx, request(fmt.Sprint(i)))
					if ctx.Err() != nil { // killed: whoever comes next begins again with this one
						todo <- i
						return
					}
					if err != nil || len(got.Addresses) != 1 {
						t.Errorf("service %d: %v, %v", i, got, err)
						return
					}
					mu.Lock()
					if other, twice := given[got.Addresses[0]]; twice {
						t.Errorf("%s was given to %d and %d", got.Addresses[0], other, i)
					}
					given[got.Addresses[0]] = i
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	began := time.Now()
	var both sync.WaitGroup
	for controller := range 2 {
		both.Go(func() {
			for range kills {
				w, ctx, cancel := start()
				if controller == 0 { // the one that is killed in the middle of its work
					time.AfterFunc(20*time.Millisecond, cancel)
				}
				work(w, ctx, services/(2*kills*4)+1)
				cancel()
			}
		})
	}
	both.Wait()
	last, ctx, cancel := start()
	defer cancel()
	work(last, ctx, services)
	elapsed := time.Since(began)
	t.Logf("%d allocations by two controllers with %d kills: %v", services, kills, elapsed)
	if len(given) != services || len(s.copies()) != services {
		t.Errorf("%d Services have addresses, there are %d records, want %d", len(given), len(s.copies()), services)
	}
	if elapsed > 5*time.Second {
		t.Errorf("took %v, want less than 5s", elapsed)
	}
	last.consistent(t)
}

func BenchmarkAllocate(b *testing.B) {
	for _, held := range []int{0, 20000, 60000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			w := newWorld(newStore(1, 0), pool("a", "198.18.0.0/16"))
			for i := range held {
				w.Index.Put(Record{Address: addresses.Add(addr("198.18.0.0"), uint64(i)), Pool: "a", UID: "u", Version: "1", Owners: []alloc.Owner{owner(fmt.Sprint("h", i))}})
			}
			req := request("web")
			for b.Loop() {
				if _, err := w.Allocate(b.Context(), req); err != nil {
					b.Fatal(err)
				}
				if err := w.Release(b.Context(), req.Owner); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
