// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	logf "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/causeway-lb/causeway/internal/alloc/book"
)

const (
	auditName  = "causeway-port-audit"
	auditEvery = 3 * time.Minute        // as often as the API server repairs
	auditNow   = 200 * time.Millisecond // after a new term, a change of pools, and an audit that was cut short
	// auditSoon is when that audit is repeated, and then after twice as long each
	// time up to auditEvery: requests that a predecessor answered may still be on
	// their way through the API server.
	auditSoon  = 5 * time.Second
	auditPorts = 256 // in one request
	// auditFor is how long a port is doubted or unproven for; the next audits end it earlier
	// when the API server has repaired itself.
	auditFor = 15 * time.Minute
)

// portAudit finds ports that no Service has and that the API server refuses all
// the same, because it lost track of them. It asks with dry runs of a Service
// that has all unused ports, which name the first that is refused. What it finds
// is doubted in the book, so that it is given to nobody while there are others.
// After a new term and a change of pools every port is unproven until it was
// asked for.
//
// The API server books the ports of an update before it stores the object, and
// when somebody else's write came between it stores nothing, forgets that it
// booked them and begins again. Its repair frees them nine minutes later.
type portAudit struct {
	client    client.Client
	book      *serviceBook
	term      grantor
	namespace string
	wanted    chan time.Duration // when to audit next; room for one

	mu   sync.Mutex // one audit at a time
	lost int        // found by the last one
}

// NeedLeaderElection is false: the holder of the term audits.
func (a *portAudit) NeedLeaderElection() bool { return false }

// begin audits for a term that is about to begin.
func (a *portAudit) begin(ctx context.Context) {
	a.book.with(func(*book.Book) { a.book.unprovePorts() })
	a.run(ctx)
}

// next has Start audit after an interval.
func (a *portAudit) next(interval time.Duration) {
	select {
	case a.wanted <- interval:
	default: // Start has not heard of the last one yet
	}
}

// Start audits now and then until ctx ends.
func (a *portAudit) Start(ctx context.Context) error {
	interval := auditEvery
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case interval = <-a.wanted:
		case <-timer.C:
			interval = min(2*interval, auditEvery)
			if a.term.held() && a.run(ctx) {
				interval = max(interval, auditSoon)
			}
		}
		timer.Reset(interval)
	}
}

// run audits once and tells whether it came to the end. That it cannot is no
// reason not to grant.
func (a *portAudit) run(ctx context.Context) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var todo []uint16
	a.book.with(func(b *book.Book) { todo = b.Ports().Unused() })
	lost := 0
	for len(todo) > 0 {
		var part []uint16 // of those that nobody was given meanwhile
		a.book.with(func(b *book.Book) {
			for ; len(todo) > 0 && len(part) < auditPorts; todo = todo[1:] {
				if !b.Ports().Taken(todo[0]) {
					part = append(part, todo[0])
				}
			}
		})
		if len(part) == 0 {
			break
		}
		good, bad, err := a.ask(ctx, part)
		if err != nil {
			logf.FromContext(ctx).Info("NodePorts not audited to the end", "left", len(part)+len(todo), "reason", err.Error())
			return false
		}
		a.book.with(func(b *book.Book) {
			for _, n := range part[:good] {
				b.Ports().Trust(n)
			}
			if bad && !b.Ports().Taken(part[good]) {
				lost++
				b.Ports().Doubt(part[good], a.book.now(), a.book.now().Add(auditFor))
			}
		})
		if bad {
			todo = append(part[good+1:], todo...)
		}
	}
	lostPorts.Set(float64(lost))
	if lost != a.lost {
		logf.FromContext(ctx).Info("The API server refuses NodePorts that no Service has; they are avoided", "ports", lost)
	}
	a.lost = lost
	return true
}

// ask returns how many of the first ports are free in the API server, and
// whether the next one is not.
func (a *portAudit) ask(ctx context.Context, ports []uint16) (good int, bad bool, err error) {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: a.namespace, Name: auditName},
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
