// SPDX-License-Identifier: Apache-2.0

package allocator

import "github.com/prometheus/client_golang/prometheus"

var (
	admissionSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "causeway_allocation_admission_seconds",
		Help:    "How long the Service webhook took, by how it answered: nothing, granted, forwarded, nobody (no replica may grant), error.",
		Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"answer"})
	lostPorts = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "causeway_allocation_lost_ports",
		Help: "NodePorts that no Service has and that the API server denied in the last audit.",
	})
)
