// SPDX-License-Identifier: Apache-2.0

package allocator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/alloc/services"
)

const (
	// AuditName is the name of the Services with which the audit asks.
	AuditName  = "causeway-port-audit"
	auditEvery = 3 * time.Minute        // as often as the API server repairs
	auditNow   = 200 * time.Millisecond // after a new leadership, a change of pools, and an incomplete audit
	// auditSoon is when that audit is repeated, and then after twice as long each time
	// up to auditEvery: requests that a predecessor answered may still be in flight in
	// the API server.
	auditSoon = 5 * time.Second
	// Ports in one request, and requests in parallel. The API server checks one port after
	// the other, each under the allocator's lock, which takes seconds for hundreds of
	// ports under load.
	auditPorts  = 64
	auditAtOnce = 8
	// suspectFor is how long a port is suspect or unverified; the next audits end
	// it earlier when the API server has repaired itself.
	suspectFor = 15 * time.Minute
)

// PortAudit finds ports that no Service has and that the API server denies all the same,
// because it leaked them. It asks by dry runs of a Service with all unused ports, whose
// error names the first that is denied. A port that it finds is suspect: it is granted only
// if there are no others. After a change of leader or of pools every port is unverified
// until it was asked for.
//
// The API server books the ports of an update before it stores the object. If another write
// came first, it stores nothing, leaks the booking and begins again. Its repair releases
// the ports nine minutes later.
type PortAudit struct {
	client    client.Client
	state     *State
	namespace string

	running chan struct{} // buffer of one: one audit at a time
	lost    int           // found by the last one
}

// NewPortAudit returns an audit that asks with Services of a namespace.
func NewPortAudit(c client.Client, state *State, namespace string) *PortAudit {
	return &PortAudit{client: c, state: state, namespace: namespace, running: make(chan struct{}, 1)}
}

// Begin audits before a leadership begins.
func (a *PortAudit) Begin(ctx context.Context) {
	a.state.With(func(*services.Allocations, time.Time) { a.state.unverifyPorts() })
	a.Audit(ctx)
}

// Run audits at intervals, while this replica leads, until ctx ends.
func (a *PortAudit) Run(ctx context.Context, leadership Leadership) error {
	interval := auditEvery
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.state.unverified:
			interval = auditNow
		case <-timer.C:
			interval = min(2*interval, auditEvery)
			if leadership.IsLeader() && a.Audit(ctx) {
				interval = max(interval, auditSoon)
			}
		}
		timer.Reset(interval)
	}
}

// Audit audits once and reports whether it was complete. Grants do not depend on it.
func (a *PortAudit) Audit(ctx context.Context) bool {
	select {
	case a.running <- struct{}{}:
		defer func() { <-a.running }()
	case <-ctx.Done():
		return false
	}
	var todo []uint16
	a.state.With(func(b *services.Allocations, _ time.Time) { todo = b.Ports().Unused() })
	var lost atomic.Int64
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(auditAtOnce)
	for part := range slices.Chunk(todo, auditPorts) {
		group.Go(func() error {
			n, err := a.look(asking, part)
			lost.Add(int64(n))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		logf.FromContext(ctx).Info("Audit of NodePorts is incomplete", "reason", err.Error())
		return false
	}
	found := int(lost.Load())
	lostPorts.Set(float64(found))
	if found != a.lost {
		logf.FromContext(ctx).Info("The API server denies NodePorts that no Service has; they are avoided", "ports", found)
	}
	a.lost = found
	return true
}

// look asks for some ports until it knows of each whether it is lost, and returns how many
// are. The answer is as old as the question: it does not verify a port that was granted
// meanwhile.
func (a *PortAudit) look(ctx context.Context, ports []uint16) (lost int, err error) {
	for {
		var asked time.Time
		a.state.With(func(b *services.Allocations, now time.Time) {
			asked = now
			b.Expire(now)
			ports = slices.DeleteFunc(ports, b.Ports().Taken)
		})
		if len(ports) == 0 {
			return lost, nil
		}
		good, bad, err := a.ask(ctx, ports)
		if err != nil {
			return lost, err
		}
		a.state.With(func(b *services.Allocations, now time.Time) {
			for _, n := range ports[:good] {
				b.Ports().MarkVerified(n, asked)
			}
			if bad && !b.Ports().Taken(ports[good]) {
				lost++
				b.Ports().MarkSuspect(ports[good], now, now.Add(suspectFor))
			}
		})
		ports = ports[good:]
		if bad {
			ports = ports[1:]
		}
	}
}

// ask returns how many of the first ports are free in the API server, and whether the next
// one is not.
func (a *PortAudit) ask(ctx context.Context, ports []uint16) (good int, bad bool, err error) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: AuditName},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort},
	}
	for _, n := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", n), Port: int32(n), NodePort: int32(n)})
	}
	err = a.client.Create(ctx, svc, client.DryRunAll)
	if err == nil {
		return len(ports), false, nil
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Details == nil {
		return 0, false, err
	}
	for _, cause := range status.Status().Details.Causes {
		if n, scanErr := fmt.Sscanf(cause.Field, "spec.ports[%d].nodePort", &good); n == 1 && scanErr == nil && good < len(ports) {
			return good, true, nil
		}
	}
	return 0, false, err
}
