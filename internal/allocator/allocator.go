// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/alloc/services"
	"github.com/causeway-lb/causeway/internal/queue"
)

const (
	// grantTimeout is how long a request waits for a replica that may grant; it is a
	// little less than the webhook's timeoutSeconds.
	grantTimeout = 9 * time.Second
	grantRetry   = 100 * time.Millisecond
	// forwardTimeout is how long another replica may take to answer.
	forwardTimeout = 2 * time.Second
)

// ErrNotLeader is returned by a replica that may not grant.
var ErrNotLeader = errors.New("this replica may not grant addresses and ports now")

// NotAllocated begins the warning of a request that is left to the API server.
const NotAllocated = "not allocated from Causeway's pools: "

// UnavailableError is returned when nothing could be granted or denied because of a fault
// of Causeway. The Service is left to the API server's allocator.
type UnavailableError struct{ Cause error }

// Error names the cause.
func (e *UnavailableError) Error() string { return NotAllocated + e.Cause.Error() }

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Cause }

// Request is a Service that is about to be stored.
type Request struct {
	// Service is the object with defaults and namespace; its name is empty for
	// generateName.
	Service *corev1.Service
	// Old is what it replaces; nil when it is new.
	Old *corev1.Service
	// UID is the request's.
	UID string
	// DryRun requests the same checks without side effects.
	DryRun bool
	// Forwarded is true for a request of another replica, which is not forwarded again.
	Forwarded bool
}

// Allocator grants ClusterIPs and NodePorts. The fields are set once.
type Allocator struct {
	// Client reads from the cache and writes; Live reads past the cache.
	Client client.Client
	Live   client.Reader

	State      *State
	Leadership Leadership
	Forwarder  *Forwarder
	// Namespace is where Causeway runs.
	Namespace string
}

// Config is what New needs.
type Config struct {
	// Namespace is where Causeway runs and keeps its Leases.
	Namespace string
	Peers     Peers
	Services  services.Config
	// Changed is NewState's.
	Changed func(Change)
}

// New returns an allocator, added to a manager with what it needs: leadership,
// audit, reservations, a readiness check.
func New(mgr manager.Manager, config Config) (*Allocator, error) {
	if err := queue.RegisterMetrics(admissionSeconds, lostPorts); err != nil {
		return nil, err
	}
	state := NewState(config.Services, time.Now, config.Changed)
	election := NewElection(mgr.GetConfig(), config.Namespace, config.Peers.Address)
	// Before that, requests should go to other replicas.
	if err := mgr.AddReadyzCheck("allocation", state.Ready); err != nil {
		return nil, err
	}
	a := &Allocator{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), State: state, Leadership: election,
		Forwarder: NewForwarder(config.Peers, config.Namespace, mgr.GetAPIReader()), Namespace: config.Namespace,
	}
	return a, mgr.Add(runnable(func(ctx context.Context) error {
		audit, reservations := NewPortAudit(a.Client, state, config.Namespace), NewReservations(a.Client, state, election)
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return state.Follow(ctx, mgr.GetCache()) })
		group.Go(func() error { return election.Run(ctx, state.synced, audit.Begin) })
		group.Go(func() error { return audit.Run(ctx, election) })
		group.Go(func() error { return reservations.Run(ctx) })
		return group.Wait()
	}))
}

// runnable runs in every replica.
type runnable func(context.Context) error

// Start implements manager.Runnable.
func (r runnable) Start(ctx context.Context) error { return r(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (r runnable) NeedLeaderElection() bool { return false }

// Grant returns what to write into a Service before it is stored. A request that needs no
// grant is answered here; others by the replica that leads, which may be this one, or, if
// none does, by the next.
//
// The error for a Service that may not be stored is a *services.Denied. Any other error is
// an *UnavailableError, or ErrNotLeader for a forwarded request.
func (a *Allocator) Grant(ctx context.Context, req Request) (services.Grant, error) {
	start := time.Now()
	grant, answer, err := a.answer(ctx, req)
	ObserveAdmission(answer, time.Since(start))
	return grant, err
}

// ObserveAdmission counts an answer of the webhook.
func ObserveAdmission(answer string, took time.Duration) {
	admissionSeconds.WithLabelValues(answer).Observe(took.Seconds())
}

func (a *Allocator) answer(ctx context.Context, req Request) (grant services.Grant, answer string, err error) {
	if req.DryRun && req.Service.Namespace == a.Namespace && req.Service.Name == AuditName || !a.concerned(req) {
		return services.Grant{}, "nothing", nil
	}
	ctx, cancel := context.WithTimeout(ctx, grantTimeout)
	defer cancel()
	for {
		if a.Leadership.IsLeader() {
			if grant, err := a.grant(ctx, req); !errors.Is(err, ErrNotLeader) {
				return grant, "granted", orUnavailable(err)
			}
		}
		if req.Forwarded {
			return services.Grant{}, "nobody", ErrNotLeader
		}
		if address := a.Leadership.Leader(); address != "" {
			grant, err := a.Forwarder.Grant(ctx, address, req)
			if err == nil || answered(err) {
				return grant, "forwarded", err
			}
			logf.FromContext(ctx).V(1).Info("Forwarding failed, will retry", "address", address, "reason", err.Error())
		}
		select {
		case <-time.After(grantRetry):
		case <-ctx.Done():
			return services.Grant{}, "nobody", &UnavailableError{Cause: errors.New("no replica of Causeway may grant addresses and ports")}
		}
	}
}

// answered reports whether an error is the final answer of a replica that leads.
func answered(err error) bool {
	_, denied := errors.AsType[*services.Denied](err)
	_, unavailable := errors.AsType[*UnavailableError](err)
	return denied || unavailable
}

func orUnavailable(err error) error {
	if err == nil || answered(err) {
		return err
	}
	return &UnavailableError{Cause: err}
}

// concerned reports whether there is anything to grant or to check.
func (a *Allocator) concerned(req Request) (yes bool) {
	if !a.State.isSynced() {
		return true // unknown yet; another replica may know
	}
	a.State.With(func(b *services.Allocations, _ time.Time) { yes = b.Concerns(req.Service, req.Old) })
	return yes
}

// grant grants as the leader. It returns ErrNotLeader when the leadership ended
// before the answer was ready.
func (a *Allocator) grant(ctx context.Context, req Request) (services.Grant, error) {
	namespace, err := a.namespaceLabels(ctx, req.Service.Namespace)
	if err != nil {
		return services.Grant{}, err
	}
	if req.Old != nil {
		a.State.catchUp(req.Old)
	}
	ask := services.Request{
		Service: req.Service, Old: req.Old, NamespaceLabels: namespace, UID: req.UID,
		DryRun: req.DryRun, Random: rand.Uint64, Epoch: a.Leadership.Epoch(),
	}
	grant, err := a.admit(ctx, ask)
	for tries := 0; err == nil && tries < 3; tries++ {
		var again bool
		if again, err = a.release(ctx, ask, grant.Former); !again {
			break
		}
		grant, err = a.admit(ctx, ask)
	}
	if err == nil && !a.Leadership.IsLeader() {
		return services.Grant{}, ErrNotLeader // pending values expire
	}
	return grant, err
}

// admit asks the state. Before it denies a value as taken it verifies that the holder still
// has it: the state lags behind.
func (a *Allocator) admit(ctx context.Context, ask services.Request) (grant services.Grant, err error) {
	for range 3 {
		a.State.With(func(b *services.Allocations, now time.Time) {
			ask.Now = now
			grant, err = b.Admit(ask)
		})
		denied, ok := errors.AsType[*services.Denied](err)
		if !ok || denied.Reason != services.Taken || denied.Holder.Name == "" {
			return grant, err
		}
		if fault := a.State.Correct(ctx, a.Live, denied.Holder); fault != nil {
			return grant, fault
		}
	}
	return grant, err
}

// namespaceLabels reads the labels of a namespace, past the cache if that does not have it
// yet.
func (a *Allocator) namespaceLabels(ctx context.Context, name string) (map[string]string, error) {
	var ns corev1.Namespace
	err := a.Client.Get(ctx, client.ObjectKey{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		err = a.Live.Get(ctx, client.ObjectKey{Name: name}, &ns)
	}
	if err != nil {
		return nil, fmt.Errorf("read namespace: %w", err)
	}
	return ns.Labels, nil
}

// release deletes the reservations of addresses that the API server's allocator is about to
// allocate. It returns true if the API server has an IPAddress of one already, which it
// leaked or has not released yet: the state has been updated and has to be asked again. An
// address that the user requested is left to the API server, as no other Service gets it.
func (a *Allocator) release(ctx context.Context, ask services.Request, former []netip.Addr) (again bool, err error) {
	if ask.DryRun || len(former) == 0 {
		return false, nil
	}
	awaitReservation(&a.State.reserving)
	for _, addr := range former {
		var ip networkingv1.IPAddress
		err := a.Live.Get(ctx, client.ObjectKey{Name: addr.String()}, &ip)
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return false, fmt.Errorf("read IPAddress %s: %w", addr, err)
		case isReservation(&ip):
			err = a.Client.Delete(ctx, &ip, client.Preconditions{UID: &ip.UID})
			if client.IgnoreNotFound(err) != nil {
				return false, fmt.Errorf("release IPAddress %s: %w", addr, err)
			}
		case !slices.Contains(ask.Service.Spec.ClusterIPs, addr.String()) && ask.Service.Spec.ClusterIP != addr.String():
			a.State.Deny(addr, alloc.OwnerOf(ask.Service), &ip)
			again = true
		}
	}
	return again, nil
}

// Check returns what is wrong with the values of a stored Service, worst first.
func (a *Allocator) Check(ctx context.Context, svc *corev1.Service) (found []services.Problem, err error) {
	namespace, err := a.namespaceLabels(ctx, svc.Namespace)
	if err != nil {
		return nil, err
	}
	a.State.With(func(b *services.Allocations, _ time.Time) { found = b.Check(svc, namespace) })
	return found, nil
}
