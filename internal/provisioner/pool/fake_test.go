// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/provisioner"
)

var errFlaky = errors.New("the API server did not answer")

// store stands for the API server: it knows the latest version of every record,
// refuses what the real one refuses, and fails at random, half of the time
// after having done what it was asked for.
type store struct {
	mu      sync.Mutex
	version int
	records map[netip.Addr]Record
	log     []change // what watchers see, in order
	failing float64
	random  *rand.Rand
}

type change struct {
	record Record
	gone   bool
}

func newStore(seed uint64, failing float64) *store {
	return &store{records: map[netip.Addr]Record{}, random: rand.New(rand.NewPCG(seed, 1)), failing: failing}
}

// attempt runs do with the chance of failing before or after it.
func (s *store) attempt(do func() (Record, error)) (Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.random.Float64() < s.failing/2 {
		return Record{}, errFlaky
	}
	r, err := do()
	if err == nil && s.random.Float64() < s.failing/2 {
		return Record{}, errFlaky
	}
	return r, err
}

func (s *store) Create(ctx context.Context, r Record) (Record, error) {
	return s.attempt(func() (Record, error) {
		if ctx.Err() != nil {
			return Record{}, ctx.Err()
		}
		if _, ok := s.records[r.Address]; ok {
			return Record{}, ErrTaken
		}
		if err := valid(r); err != nil {
			return Record{}, err
		}
		r.UID = "uid-" + strconv.Itoa(s.version)
		return s.put(r), nil
	})
}

func (s *store) Update(ctx context.Context, r Record) (Record, error) {
	return s.attempt(func() (Record, error) {
		if ctx.Err() != nil {
			return Record{}, ctx.Err()
		}
		if err := s.precondition(r); err != nil {
			return Record{}, err
		}
		if err := valid(r); err != nil {
			return Record{}, err
		}
		return s.put(r), nil
	})
}

func (s *store) Delete(ctx context.Context, r Record) error {
	_, err := s.attempt(func() (Record, error) {
		if ctx.Err() != nil {
			return Record{}, ctx.Err()
		}
		if err := s.precondition(r); err != nil {
			return Record{}, err
		}
		delete(s.records, r.Address)
		s.log = append(s.log, change{record: r, gone: true})
		return r, nil
	})
	return err
}

func (s *store) Get(_ context.Context, a netip.Addr) (Record, error) {
	return s.attempt(func() (Record, error) {
		r, ok := s.records[a]
		if !ok {
			return Record{}, ErrGone
		}
		return r, nil
	})
}

func (s *store) precondition(r Record) error {
	have, ok := s.records[r.Address]
	switch {
	case !ok:
		return ErrGone
	case have.UID != r.UID || have.Version != r.Version:
		return ErrChanged
	}
	return nil
}

func (s *store) put(r Record) Record {
	s.version++
	r.Version = strconv.Itoa(s.version)
	r.Owners = slices.Clone(r.Owners)
	s.records[r.Address] = r
	s.log = append(s.log, change{record: r})
	return r
}

// valid is what the CRD's rules check.
func valid(r Record) error {
	switch {
	case len(r.Owners) > 1 && r.SharingKey == "":
		return fmt.Errorf("%s: only Services with the same sharing key can hold one address together", r.Address)
	case len(r.Owners) > 0 && !r.ReleasedAt.IsZero():
		return fmt.Errorf("%s: released though held", r.Address)
	case r.Pool == "" && !r.Reserved:
		return fmt.Errorf("%s: pool is missing", r.Address)
	}
	return nil
}

// copies returns the records, safe to keep.
func (s *store) copies() map[netip.Addr]Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.records)
}

// watcher shows an index the store's changes, some at a time.
type watcher struct {
	store *store
	index *Index
	seen  int
}

// catchUp shows up to n changes; -1 means all.
func (w *watcher) catchUp(n int) {
	w.store.mu.Lock()
	pending := slices.Clone(w.store.log[w.seen:])
	w.store.mu.Unlock()
	for i, c := range pending {
		if i == n {
			return
		}
		if c.gone {
			w.index.Delete(c.record.Address, c.record.UID)
		} else {
			w.index.Put(c.record)
		}
		w.seen++
	}
}

// spans reads ranges as a pool's spec has them.
func spans(texts ...string) []Range {
	ranges, err := alloc.ParseRanges("ranges", texts)
	if err != nil {
		panic(err)
	}
	var out []Range
	for _, r := range ranges {
		out = append(out, r.Span)
	}
	return out
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, addr(t))
	}
	return out
}

func owner(name string) alloc.Owner {
	return alloc.Owner{Namespace: "ns", Name: name, UID: "uid-of-" + name}
}

// request is one for an IPv4 address and port 80.
func request(name string, change ...func(*provisioner.Request)) provisioner.Request {
	r := provisioner.Request{
		Owner: owner(name), Families: []corev1.IPFamily{corev1.IPv4Protocol}, Policy: corev1.IPFamilyPolicySingleStack,
		Ports: []provisioner.Port{{Protocol: corev1.ProtocolTCP, Port: 80}},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

var dualFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}

func dual(policy corev1.IPFamilyPolicy) func(*provisioner.Request) {
	return func(r *provisioner.Request) { r.Families, r.Policy = dualFamilies, policy }
}

// world is a provisioner over a store, whose clock stands still.
type world struct {
	store *store
	*Provisioner
	watch watcher
	ports map[string][]provisioner.Port // by owner
}

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newWorld(s *store, pools ...Pool) *world {
	w := &world{store: s, ports: map[string][]provisioner.Port{}}
	index := NewIndex()
	p, err := New(Config{
		Index: index, Records: s, Now: func() time.Time { return noon },
		Ports: func(o alloc.Owner) []provisioner.Port { return w.ports[o.String()] },
	})
	if err != nil {
		panic(err)
	}
	w.Provisioner = p
	w.watch = watcher{store: s, index: index}
	for _, pool := range pools {
		index.SetPool(pool)
	}
	return w
}

// pool returns one without quarantine that admits everybody.
func pool(name string, ranges ...string) Pool {
	parsed, err := alloc.ParseRanges("addresses", ranges)
	if err != nil {
		panic(err)
	}
	p := Pool{Name: name, AutoAssign: true}
	for _, r := range parsed {
		p.Ranges, p.Ends = append(p.Ranges, r.Span), append(p.Ends, r.Ends()...)
	}
	return p
}
