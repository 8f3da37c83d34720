// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-lb/causeway/internal/conntrack"
)

// newCleaner returns the cleaner of stale flows with its metrics.
func newCleaner(tcp bool, r prometheus.Registerer) *conntrack.Cleaner {
	deleted := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "causeway_conntrack_flows_ended_total", Help: "Flows ended because their endpoint was gone.",
	})
	failed := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "causeway_conntrack_errors_total", Help: "Runs that could not end all stale flows.",
	})
	took := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "causeway_conntrack_clean_duration_seconds", Help: "Time of one run over the connection tracking table.",
		Buckets: prometheus.ExponentialBuckets(0.0002, 2, 15),
	})
	r.MustRegister(deleted, failed, took)
	return conntrack.NewCleaner(tcp, func(n int, elapsed time.Duration, err error) {
		deleted.Add(float64(n))
		took.Observe(elapsed.Seconds())
		if err != nil {
			failed.Inc()
		}
	})
}
