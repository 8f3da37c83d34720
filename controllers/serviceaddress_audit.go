// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
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
	auditEvery = 3 * time.Minute // as often as the API server repairs
	// auditSoon is when a new term's first audit is repeated, and then after
	// twice as long each time up to auditEvery: requests that the predecessor
	// answered may still be on their way through the API server.
	auditSoon  = 5 * time.Second
	auditPorts = 4096 // in one request
	auditMost  = 64   // requests in one audit
	// auditFor is how long a port is doubted for; the next audits end it earlier
	// when the API server has repaired itself.
	auditFor = 15 * time.Minute
)

// portAudit finds ports that no Service has and that the API server refuses all
// the same: those it lost track of (an update that loses a race keeps its ports
// booked until a repair, up to nine minutes), and those outside its range. It
// asks with a dry run of a Service with all free ports, which names the first
// that is refused. What it finds is doubted in the book, so that it is given to
// nobody while there are others.
type portAudit struct {
	client    client.Client
	book      *serviceBook
	term      grantor
	namespace string
	began     chan struct{} // a term began; room for one
}

// NeedLeaderElection is false: the holder of the term audits.
func (a *portAudit) NeedLeaderElection() bool { return false }

// begin audits for a term that is about to begin.
func (a *portAudit) begin(ctx context.Context) {
	a.run(ctx)
	select {
	case a.began <- struct{}{}:
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
		case <-a.began:
			interval = auditSoon
		case <-timer.C:
			if a.term.held() {
				a.run(ctx)
			}
			interval = min(2*interval, auditEvery)
		}
		timer.Reset(interval)
	}
}

// run audits once. That it cannot is no reason not to grant.
func (a *portAudit) run(ctx context.Context) {
	var free, others []uint16
	a.book.with(func(b *book.Book) { free, others = b.Ports().Unused(1 << 16) })
	ports := append(free, others...)
	lost := 0
	for requests := 0; len(ports) > 0 && requests < auditMost; requests++ {
		part := ports[:min(len(ports), auditPorts)]
		good, bad, err := a.ask(ctx, part)
		if err != nil {
			logf.FromContext(ctx).Info("NodePorts not audited", "reason", err.Error())
			return
		}
		a.book.with(func(b *book.Book) {
			for _, n := range part[:good] {
				b.Ports().Trust(n)
			}
			if bad {
				lost++
				b.Ports().Doubt(part[good], a.book.now(), a.book.now().Add(auditFor))
			}
		})
		ports = ports[good:]
		if bad {
			ports = ports[1:]
		}
	}
	lostPorts.Set(float64(lost))
	if lost > 0 {
		logf.FromContext(ctx).Info("The API server refuses NodePorts that no Service has; they are avoided", "ports", lost)
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
