// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

var (
	allocateSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "causeway_loadbalancer_allocate_seconds",
		Help:    "Time to find and record the addresses of one Service, API calls included.",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
	})
	allocateLost = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "causeway_loadbalancer_allocate_races_lost_total",
		Help: "Addresses that another controller took between being chosen and being recorded.",
	})
	pendingServices = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "causeway_loadbalancer_pending_services",
		Help: "Services whose request for addresses is not met.",
	})
	poolAddresses = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_loadbalancer_pool_addresses",
		Help: "Addresses of a pool by family and state: assigned, reserved, quarantined, excluded, free, draining.",
	}, []string{"pool", "family", "state"})
)

// setPoolMetrics sets a pool's counts; a family without addresses has none.
func setPoolMetrics(pool string, ipv4, ipv6 *v1alpha1.PoolUsage) {
	poolAddresses.DeletePartialMatch(prometheus.Labels{"pool": pool})
	for family, u := range map[string]*v1alpha1.PoolUsage{"IPv4": ipv4, "IPv6": ipv6} {
		if u == nil {
			continue
		}
		for state, n := range map[string]int64{
			"assigned": u.Assigned, "reserved": u.Reserved, "quarantined": u.Quarantined,
			"excluded": u.Excluded, "free": u.Free, "draining": u.Draining,
		} {
			poolAddresses.WithLabelValues(pool, family, state).Set(float64(n))
		}
	}
}
