// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var (
	admissionSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "causeway_allocation_admission_seconds",
		Help:    "How long the Service webhook took, by how it answered: nothing, granted, forwarded, nobody (no replica may grant), error.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"answer"})
	poolValues = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_allocation_pool_values",
		Help: "Addresses or ports of a pool, by kind (IPv4, IPv6, ports) and state (used, quarantined, excluded, free).",
	}, []string{"pool", "kind", "state"})
	serviceProblems = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_allocation_problem_services",
		Help: "Services whose addresses or ports are not what the pools would give them, by the worst reason.",
	}, []string{"reason"})
	lostPorts = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "causeway_allocation_lost_ports",
		Help: "NodePorts that no Service has and that the API server refused in the last audit.",
	})
)

func init() { metrics.Registry.MustRegister(admissionSeconds, poolValues, serviceProblems, lostPorts) }

func observeAdmission(answer string, took time.Duration) {
	admissionSeconds.WithLabelValues(answer).Observe(took.Seconds())
}
