// SPDX-License-Identifier: Apache-2.0

package userspace

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the proxy.
type Metrics struct {
	open        *prometheus.GaugeVec
	accepted    *prometheus.CounterVec
	refused     *prometheus.CounterVec
	descriptors prometheus.Gauge
}

// Reasons why the proxy refuses a connection.
const (
	reasonLimit      = "limit"       // no file descriptors
	reasonNoEndpoint = "no-endpoint" // none could be connected to
	reasonNoService  = "no-service"  // it has just gone
)

// NewMetrics makes the metrics; register them with Collectors.
func NewMetrics() *Metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "causeway", Subsystem: "proxy_userspace", Name: name, Help: help}
	}
	return &Metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("open_connections", "Connections and UDP flows that the proxy carries.")),
			[]string{"protocol"}),
		accepted: prometheus.NewCounterVec(prometheus.CounterOpts(opts("connections_total", "Connections and UDP flows that were led to an endpoint.")),
			[]string{"protocol"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts(opts("refused_total",
			"Connections and first datagrams that could not be led to an endpoint, by reason: limit, no-endpoint, no-service.")),
			[]string{"protocol", "reason"}),
		descriptors: prometheus.NewGauge(prometheus.GaugeOpts(opts("descriptors_limit", "File descriptors that connections may use."))),
	}
}

// Collectors are all metrics, to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.open, m.accepted, m.refused, m.descriptors}
}
