// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
)

// KubeProxyLeftovers is a Part that reports rules of kube-proxy on the node that this
// agent programs, by a log line, an event on the Node and a metric. present returns what
// there is, "" for nothing; it is called when the kernel has been programmed, and then at
// an interval.
func KubeProxyLeftovers(present func(context.Context) (string, error), every time.Duration) Part {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "causeway_kube_proxy_leftovers", Help: "1 while rules of kube-proxy are on this node.",
	})
	return Part{Name: "kube-proxy's leftovers", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(gauge)
		log := logr.FromContextOrDiscard(ctx)
		reported := ""
		env.whenProgrammed(ctx, every, func() {
			what, err := present(ctx)
			if err != nil {
				log.Error(err, "Looking for rules of kube-proxy failed", "node", env.NodeName)
				return
			}
			gauge.Set(0)
			if what != "" {
				gauge.Set(1)
			}
			if what != "" && what != reported {
				log.Info("Rules of kube-proxy are on this node", "node", env.NodeName, "rules", what)
				env.warnNode("KubeProxyLeftovers", "kube-proxy's rules are still on this node: %s. They may send connections to endpoints of the time when it stopped. "+
					"Stop kube-proxy here, then run: agent cleanup --kube-proxy", what)
			}
			reported = what
		})
		return nil
	}}
}
