// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
)

// ModeReporter reports to operators which proxy mode a node uses, and why not the
// one that was asked for: by a log line, a metric, and an event and a condition on
// the Node. Its FellBack and Chosen go into modes.Config; Part does the rest.
type ModeReporter struct {
	log   logr.Logger
	gauge *prometheus.GaugeVec
	falls prometheus.Counter

	mu     sync.Mutex
	unsent []string // messages for events, while there is no recorder
	wake   chan struct{}
	// mode is the one in use, "" before the choice; why is the reason if it is not
	// the configured one.
	mode modes.Mode
	why  string
}

// conditionRetry is the pause after a failed write of the condition.
const conditionRetry = 10 * time.Second

// NewModeReporter returns a reporter that logs to log.
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
	message := fmt.Sprintf("Proxy mode %s cannot be used on this node, which uses %s instead: %v", from, to, why)
	r.unsent = append(r.unsent, message)
	r.why = message
	r.mu.Unlock()
	wakeUp(r.wake)
}

// Chosen reports the mode in use.
func (r *ModeReporter) Chosen(mode modes.Mode) {
	r.log.Info("Proxy mode in use", "mode", mode)
	r.gauge.WithLabelValues(string(mode)).Set(1)
	r.mu.Lock()
	r.mode = mode
	r.mu.Unlock()
	wakeUp(r.wake)
}

// ModeCondition is the condition on the Node.
const ModeCondition corev1.NodeConditionType = v1alpha1.NodeProxyModeSupported

// condition returns the condition for the Node; nil before the choice.
func (r *ModeReporter) condition() *corev1.NodeCondition {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mode == "" {
		return nil
	}
	now := metav1.Now()
	c := &corev1.NodeCondition{
		Type: ModeCondition, Status: corev1.ConditionTrue, Reason: "InUse", Message: fmt.Sprintf("Proxy mode %s is in use", r.mode),
		LastHeartbeatTime: now, LastTransitionTime: now,
	}
	if r.why != "" {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "Fallback", r.why
	}
	return c
}

// setCondition writes the condition if the Node does not have it, and removes that of
// former versions.
func (r *ModeReporter) setCondition(ctx context.Context, env Env) error {
	want := r.condition()
	if want == nil {
		return nil
	}
	if n := env.Store.Node(env.NodeName); n != nil {
		current, former := false, false
		for _, have := range n.Status.Conditions {
			current = current || have.Type == want.Type && have.Status == want.Status && have.Message == want.Message
			former = former || have.Type == v1alpha1.FormerNodeProxyMode
		}
		if current && !former {
			return nil
		}
	}
	conditions := []any{want, map[string]any{"$patch": "delete", "type": v1alpha1.FormerNodeProxyMode}}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": conditions}})
	if err != nil {
		return err
	}
	_, err = env.Kube.CoreV1().Nodes().PatchStatus(ctx, env.NodeName, patch)
	return err
}

// Part writes the reports to the Node and the metrics.
func (r *ModeReporter) Part() Part {
	return Part{Name: "mode", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(r.gauge, r.falls)
		for {
			for _, message := range r.take() {
				env.warnNode("ProxyModeUnsupported", "%s", message)
			}
			var again <-chan time.Time
			if err := r.setCondition(ctx, env); err != nil && ctx.Err() == nil {
				r.log.Error(err, "Writing the condition of the proxy mode failed, will try again", "node", env.NodeName)
				again = time.After(conditionRetry)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-r.wake:
			case <-again:
			}
		}
	}}
}

func (r *ModeReporter) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	messages := r.unsent
	r.unsent = nil
	return messages
}
