// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/proxy/modes"
)

// ModeReporter tells operators which proxy mode a node uses, and why not the
// one that was asked for: a log line, a metric and an event on the Node. Its
// FellBack and Chosen go into modes.Config; it is a Part for the rest.
type ModeReporter struct {
	log   logr.Logger
	gauge *prometheus.GaugeVec
	falls prometheus.Counter

	mu     sync.Mutex
	untold []string // messages for events, while there is no recorder
	wake   chan struct{}
}

// NewModeReporter gives a reporter that logs to log.
func NewModeReporter(log logr.Logger) *ModeReporter {
	return &ModeReporter{
		log:  log,
		wake: make(chan struct{}, 1),
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "causeway_proxy_mode", Help: "1 for the proxy mode that this node uses.",
		}, []string{"mode"}),
		falls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "causeway_proxy_mode_fallbacks_total", Help: "Proxy modes that were wanted and that this node cannot do.",
		}),
	}
}

// FellBack reports that a mode cannot be used here.
func (r *ModeReporter) FellBack(from, to modes.Mode, why error) {
	r.log.Info("Proxy mode cannot be used on this node", "mode", from, "instead", to, "reason", why.Error())
	r.falls.Inc()
	r.mu.Lock()
	r.untold = append(r.untold, fmt.Sprintf("Proxy mode %s cannot be used on this node, which uses %s instead: %v", from, to, why))
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Chosen reports the mode in use.
func (r *ModeReporter) Chosen(mode modes.Mode) {
	r.log.Info("Proxy mode in use", "mode", mode)
	r.gauge.WithLabelValues(string(mode)).Set(1)
}

// Part puts what is reported on the Node and into the metrics.
func (r *ModeReporter) Part() Part {
	return Part{Name: "mode", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(r.gauge, r.falls)
		for {
			for _, message := range r.take() {
				ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: env.NodeName}
				if n := env.Store.Node(env.NodeName); n != nil {
					ref.UID = n.UID
				}
				env.Recorder.Eventf(ref, nil, corev1.EventTypeWarning, "ProxyModeUnsupported", "Program", "%s", message)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-r.wake:
			}
		}
	}}
}

func (r *ModeReporter) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	messages := r.untold
	r.untold = nil
	return messages
}
