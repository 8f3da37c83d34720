// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// kubeProxyMetrics are those of kube-proxy's metrics that the syncer does not have, for
// dashboards and alerts that use them; see docs/kube-proxy.md.
type kubeProxyMetrics struct {
	healthz, livez      *prometheus.CounterVec
	services, endpoints prometheus.Counter
}

func newKubeProxyMetrics() *kubeProxyMetrics {
	answers := func(name, path string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "kubeproxy", Name: name, Help: "Answers of " + path + ", by HTTP status.",
		}, []string{"code"})
	}
	changes := func(name, what string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: "Changes of " + what + " that the API server told of."})
	}
	return &kubeProxyMetrics{
		healthz:   answers("proxy_healthz_total", "/healthz"),
		livez:     answers("proxy_livez_total", "/livez"),
		services:  changes("sync_proxy_rules_service_changes_total", "Services"),
		endpoints: changes("sync_proxy_rules_endpoint_changes_total", "EndpointSlices"),
	}
}

func (m *kubeProxyMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.healthz, m.livez, m.services, m.endpoints}
}

// answered counts an answer of a health check.
func (m *kubeProxyMetrics) answered(path string, status int) {
	code := strconv.Itoa(status)
	switch path {
	case "/healthz":
		m.healthz.WithLabelValues(code).Inc()
	case "/livez":
		m.livez.WithLabelValues(code).Inc()
	}
}

func (m *kubeProxyMetrics) changed(k Kind) {
	if k == KindService {
		m.services.Inc()
	} else {
		m.endpoints.Inc()
	}
}
