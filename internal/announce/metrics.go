// SPDX-License-Identifier: Apache-2.0

package announce

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what a Speaker does, for all Kinds together. An Announcer has its own.
type Metrics struct {
	announced prometheus.Gauge
	conflicts prometheus.Gauge
	members   prometheus.Gauge
	moves     *prometheus.CounterVec
	election  prometheus.Histogram
	detection prometheus.Histogram
}

// NewMetrics registers with reg; nil registers nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	const ns, sub = "causeway", "announce"
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help})
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Subsystem: sub, Name: name, Help: help}, labels)
	}
	m := &Metrics{
		announced: gauge("addresses", "LoadBalancer addresses that this node answers for."),
		conflicts: gauge("conflicts", "LoadBalancer addresses that a host which is not ours uses on the link."),
		members:   gauge("members_alive", "Other nodes whose agents answer."),
		moves:     counter("moves_total", "Addresses that this node began (direction in) or ceased (direction out) to answer for.", "direction"),
		election: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "election_seconds",
			Help: "Time to elect announcers and act on it.", Buckets: prometheus.ExponentialBuckets(1e-4, 4, 8)}),
		detection: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Subsystem: sub, Name: "detection_seconds",
			Help: "Silence of a peer when it was found dead.", Buckets: []float64{.1, .15, .2, .25, .3, .4, .5, .75, 1, 1.5, 2, 5}}),
	}
	if reg != nil {
		reg.MustRegister(m.announced, m.conflicts, m.members, m.moves, m.election, m.detection)
	}
	return m
}
