// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/alloc"
)

// The allocator's lease is short, because Services that are created meanwhile
// wait for it; losing it costs nothing but a hop, unlike the manager's.
const (
	termLease = "causeway-allocator"
	termFor   = 4 * time.Second
	termRenew = 3 * time.Second
	termRetry = 500 * time.Millisecond

	// settle is how long a successor waits after its predecessor may have
	// granted for the last time, so that the Services of those grants are seen.
	settle = time.Second

	// freshFor is how long requests that the predecessor granted something can be
	// on their way: the API server gives them a minute.
	freshFor = time.Minute + settle

	// preparation is how long grants wait for what a successor looks into first.
	preparation = 2 * time.Second
)

// term is one replica's share in the one right to grant addresses and ports.
type term struct {
	config   *rest.Config
	lease    metav1.ObjectMeta
	identity string
	ready    <-chan struct{}
	prepare  func(context.Context) // runs before the first grant, which waits for it no longer than preparation

	mu      sync.Mutex // between begin and end
	elector atomic.Pointer[leaderelection.LeaderElector]
	since   atomic.Int64 // UnixNano from which on this replica may grant; 0 when it may not
	rival   atomic.Bool  // another replica was seen to hold the lease
	number  atomic.Int64 // of this term, as the lease counts them
}

// newTerm returns the term of a replica whose webhooks other replicas reach at
// address; empty when they cannot. It is not held before ready is closed.
func newTerm(config *rest.Config, namespace, address string, ready <-chan struct{}) *term {
	return &term{
		config:   config,
		lease:    metav1.ObjectMeta{Namespace: namespace, Name: termLease},
		identity: rand.Text()[:8] + "@" + address,
		ready:    ready,
		prepare:  func(context.Context) {},
	}
}

// NeedLeaderElection is false: this is an election of its own.
func (t *term) NeedLeaderElection() bool { return false }

// Start takes part in the election until ctx ends, then gives the lease up.
func (t *term) Start(ctx context.Context) error {
	select {
	case <-t.ready:
	case <-ctx.Done():
		return nil
	}
	client, err := coordinationv1.NewForConfig(t.config)
	if err != nil {
		return fmt.Errorf("make client for lease %s: %w", termLease, err)
	}
	lock := &resourcelock.LeaseLock{LeaseMeta: t.lease, Client: client, LockConfig: resourcelock.ResourceLockConfig{Identity: t.identity}}
	log := logf.FromContext(ctx).WithName("allocator")
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			LeaseDuration:   termFor,
			RenewDeadline:   termRenew,
			RetryPeriod:     termRetry,
			ReleaseOnCancel: true,
			Name:            termLease,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(leading context.Context) {
					t.begin(logf.IntoContext(leading, log), lock)
				},
				OnStoppedLeading: t.end,
				OnNewLeader:      func(id string) { t.rival.Store(t.rival.Load() || id != t.identity) },
			},
		})
		if err != nil {
			return fmt.Errorf("elect who grants: %w", err)
		}
		t.elector.Store(elector)
		elector.Run(ctx)
	}
	return nil
}

// begin prepares and lets this replica grant, not before the Services of its
// predecessor's last grants are seen, if there was one.
func (t *term) begin(ctx context.Context, lock resourcelock.Interface) {
	earliest := time.Now()
	if t.rival.Swap(false) {
		earliest = earliest.Add(settle)
	}
	preparing, cancel := context.WithTimeout(ctx, preparation)
	defer cancel()
	if record, _, err := lock.Get(preparing); err == nil {
		t.number.Store(int64(record.LeaderTransitions))
	} else {
		t.number.Add(1) // not what the others count, but seldom what the last one was
	}
	t.prepare(preparing)
	t.mu.Lock()
	defer t.mu.Unlock()
	if ctx.Err() != nil {
		return // over before it began
	}
	t.since.Store(max(earliest.UnixNano(), time.Now().UnixNano()))
	logf.FromContext(ctx).Info("Grants addresses and ports", "identity", t.identity)
}

// end stops granting. The context that begin looks at has ended by then.
func (t *term) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.since.Store(0)
}

// held tells whether this replica may grant now. A replica that was stopped in
// the middle of a request and woke up after its lease ended finds out here.
func (t *term) held() bool {
	since, elector := t.since.Load(), t.elector.Load()
	return since != 0 && time.Now().UnixNano() >= since && elector.IsLeader() && elector.Check(termRenew-termFor) == nil
}

// turn is this term among others.
func (t *term) turn() alloc.Turn {
	age := time.Duration(time.Now().UnixNano() - t.since.Load())
	return alloc.Turn{Number: int(t.number.Load()), Fresh: age < freshFor}
}

// holder returns the address of the replica that may grant; empty when nobody
// is known to, when it is this one, or when it has none.
func (t *term) holder() string {
	elector := t.elector.Load()
	if elector == nil {
		return ""
	}
	id := elector.GetLeader()
	_, address, _ := strings.Cut(id, "@")
	if id == t.identity {
		return ""
	}
	return address
}
