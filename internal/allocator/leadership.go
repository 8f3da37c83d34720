// SPDX-License-Identifier: Apache-2.0

package allocator

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

// LeaseName is the name of the Lease of the replica that grants.
const LeaseName = "causeway-allocator"

// The allocator's lease is short, because the creation of Services waits for it; unlike the
// manager's, losing it costs one hop only.
const (
	leaseDuration = 4 * time.Second
	renewDeadline = 3 * time.Second
	retryPeriod   = 500 * time.Millisecond

	// takeoverDelay is how long a successor waits after its predecessor may have
	// granted for the last time, so that it sees the Services of those grants.
	takeoverDelay = time.Second

	// freshFor is how long requests with grants of the predecessor can be in flight: the
	// API server's timeout is a minute.
	freshFor = time.Minute + takeoverDelay

	// preparation is how long grants wait for a successor's first audit.
	preparation = 2 * time.Second
)

// Leadership knows which replica may grant.
type Leadership interface {
	// IsLeader reports whether this replica may grant now.
	IsLeader() bool
	// Leader returns host:port of the replica that may grant; empty when none is
	// known to, when it is this one, or when it cannot be reached.
	Leader() string
	// Epoch is the present leadership of this replica among others.
	Epoch() alloc.Epoch
}

// Election elects, by a Lease, the one replica that may grant addresses and ports.
type Election struct {
	config   *rest.Config
	lease    metav1.ObjectMeta
	identity string

	mu       sync.Mutex // between begin and end
	elector  atomic.Pointer[leaderelection.LeaderElector]
	since    atomic.Int64 // UnixNano from which on this replica may grant; 0 when it may not
	followed atomic.Bool  // another replica was seen to hold the lease
	epoch    atomic.Int64 // as the lease counts its holders
}

// NewElection returns the Election for a replica whose webhooks other replicas reach at
// address; empty if they cannot.
func NewElection(config *rest.Config, namespace, address string) *Election {
	return &Election{
		config:   config,
		lease:    metav1.ObjectMeta{Namespace: namespace, Name: LeaseName},
		identity: rand.Text()[:8] + "@" + address,
	}
}

// Run takes part in the election from when ready is closed until ctx ends, then releases the
// lease. prepare runs before the first grant of a leadership, which waits for it for at
// most preparation.
func (e *Election) Run(ctx context.Context, ready <-chan struct{}, prepare func(context.Context)) error {
	select {
	case <-ready:
	case <-ctx.Done():
		return nil
	}
	client, err := coordinationv1.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make client for lease %s: %w", LeaseName, err)
	}
	lock := &resourcelock.LeaseLock{LeaseMeta: e.lease, Client: client, LockConfig: resourcelock.ResourceLockConfig{Identity: e.identity}}
	log := logf.FromContext(ctx).WithName("allocator")
	for ctx.Err() == nil {
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock:            lock,
			LeaseDuration:   leaseDuration,
			RenewDeadline:   renewDeadline,
			RetryPeriod:     retryPeriod,
			ReleaseOnCancel: true,
			Name:            LeaseName,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(leading context.Context) { e.begin(logf.IntoContext(leading, log), lock, prepare) },
				OnStoppedLeading: e.end,
				OnNewLeader:      func(id string) { e.followed.Store(e.followed.Load() || id != e.identity) },
			},
		})
		if err != nil {
			return fmt.Errorf("elect who grants: %w", err)
		}
		e.elector.Store(elector)
		elector.Run(ctx)
	}
	return nil
}

// begin prepares and lets this replica grant, after it has seen the Services of the last
// grants of its predecessor, if there was one.
func (e *Election) begin(ctx context.Context, lock resourcelock.Interface, prepare func(context.Context)) {
	earliest := time.Now()
	if e.followed.Swap(false) {
		earliest = earliest.Add(takeoverDelay)
	}
	preparing, cancel := context.WithTimeout(ctx, preparation)
	defer cancel()
	if record, _, err := lock.Get(preparing); err == nil {
		e.epoch.Store(int64(record.LeaderTransitions))
	} else {
		e.epoch.Add(1) // differs from the others' count, but rarely equals the last one
	}
	prepare(preparing)
	e.mu.Lock()
	defer e.mu.Unlock()
	if ctx.Err() != nil {
		return // over before it began
	}
	e.since.Store(max(earliest.UnixNano(), time.Now().UnixNano()))
	logf.FromContext(ctx).Info("Grants addresses and ports", "identity", e.identity)
}

// end stops granting. The context of begin has ended by then.
func (e *Election) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.since.Store(0)
}

// IsLeader implements Leadership. A process that was suspended during a request, until after
// its lease has ended, finds out here.
func (e *Election) IsLeader() bool {
	since, elector := e.since.Load(), e.elector.Load()
	return since != 0 && time.Now().UnixNano() >= since && elector.IsLeader() && elector.Check(renewDeadline-leaseDuration) == nil
}

// Epoch implements Leadership.
func (e *Election) Epoch() alloc.Epoch {
	age := time.Duration(time.Now().UnixNano() - e.since.Load())
	return alloc.Epoch{Number: int(e.epoch.Load()), Fresh: age < freshFor}
}

// Leader implements Leadership.
func (e *Election) Leader() string {
	elector := e.elector.Load()
	if elector == nil || elector.GetLeader() == e.identity {
		return ""
	}
	_, address, _ := strings.Cut(elector.GetLeader(), "@")
	return address
}
