// SPDX-License-Identifier: Apache-2.0

package controllers

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

	"github.com/causeway-lb/causeway/internal/alloc/book"
)

const (
	auditName  = "causeway-port-audit"
	auditEvery = 3 * time.Minute        // as often as the API server repairs
	auditNow   = 200 * time.Millisecond // after a new term, a change of pools, and an audit that was cut short
	// auditSoon is when that audit is repeated, and then after twice as long each
	// time up to auditEvery: requests that a predecessor answered may still be on
	// their way through the API server.
	auditSoon = 5 * time.Second
	// In one request, and requests at once. The API server looks at one port after
	// the other and waits each time until those who allocate let it, which takes
	// seconds for hundreds of ports when it has much to do.
	auditPorts  = 64
	auditAtOnce = 8
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

	running chan struct{} // room for one: audits take turns
	lost    int           // found by the last one
}

func newPortAudit(c client.Client, b *serviceBook, t grantor, namespace string) *portAudit {
	return &portAudit{
		client: c, book: b, term: t, namespace: namespace,
		wanted: make(chan time.Duration, 1), running: make(chan struct{}, 1),
	}
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
	select {
	case a.running <- struct{}{}:
		defer func() { <-a.running }()
	case <-ctx.Done():
		return false
	}
	var todo []uint16
	a.book.with(func(b *book.Book) { todo = b.Ports().Unused() })
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
		logf.FromContext(ctx).Info("NodePorts not audited to the end", "reason", err.Error())
		return false
	}
	found := int(lost.Load())
	lostPorts.Set(float64(found))
	if found != a.lost {
		logf.FromContext(ctx).Info("The API server refuses NodePorts that no Service has; they are avoided", "ports", found)
	}
	a.lost = found
	return true
}

// look asks for some ports until it knows of each whether it is lost, and
// returns how many are. The answer is as old as the question: a port that was
// given to somebody meanwhile, and lost, is not free because of it.
func (a *portAudit) look(ctx context.Context, ports []uint16) (lost int, err error) {
	for {
		var asked time.Time
		a.book.with(func(b *book.Book) {
			asked = a.book.now()
			b.Expire(asked)
			ports = slices.DeleteFunc(ports, b.Ports().Taken)
		})
		if len(ports) == 0 {
			return lost, nil
		}
		good, bad, err := a.ask(ctx, ports)
		if err != nil {
			return lost, err
		}
		a.book.with(func(b *book.Book) {
			for _, n := range ports[:good] {
				b.Ports().Trust(n, asked)
			}
			if bad && !b.Ports().Taken(ports[good]) {
				lost++
				b.Ports().Doubt(ports[good], a.book.now(), a.book.now().Add(auditFor))
			}
		})
		ports = ports[good:]
		if bad {
			ports = ports[1:]
		}
	}
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
