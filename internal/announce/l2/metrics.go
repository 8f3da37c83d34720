// SPDX-License-Identifier: Apache-2.0

package l2

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what Announcers do.
type Metrics struct {
	answers  *prometheus.CounterVec
	limited  *prometheus.CounterVec
	lost     prometheus.Counter
	replayed prometheus.Counter
}

// NewMetrics registers with reg; nil registers nowhere.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	options := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "causeway", Subsystem: "announce", Name: name, Help: help}
	}
	m := &Metrics{
		answers: prometheus.NewCounterVec(options("answers_total", "Questions and probes answered."), []string{"protocol"}),
		limited: prometheus.NewCounterVec(options("answers_limited_total", "Questions and probes not answered because of the rate limit."), []string{"protocol"}),
		lost:    prometheus.NewCounter(options("heard_dropped_total", "Claims and probes that were heard but dropped because the agent could not keep up.")),
		replayed: prometheus.NewCounter(options("heard_replayed_total",
			"Claims and probes left out because their seal was not made just now: somebody sends what was recorded, or an agent is late by seconds.")),
	}
	if reg != nil {
		reg.MustRegister(m.answers, m.limited, m.lost, m.replayed)
	}
	return m
}
