// SPDX-License-Identifier: Apache-2.0

package clusterip

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

var (
	poolValues = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_allocation_pool_values",
		Help: "Addresses or ports of a pool, by kind (IPv4, IPv6, ports) and state (used, quarantined, excluded, free).",
	}, []string{"pool", "kind", "state"})
	serviceProblems = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_allocation_problem_services",
		Help: "Services whose addresses or ports are not what the pools would give them, by the worst reason.",
	}, []string{"reason"})
)

// observeUsage sets the metrics of a pool's values of one kind; nil for a pool
// that has none, or is gone.
func observeUsage(pool, kind string, u *v1alpha1.AllocationUsage) {
	if u == nil {
		poolValues.DeletePartialMatch(prometheus.Labels{"pool": pool, "kind": kind})
		return
	}
	for state, n := range map[string]int64{"used": u.Used, "quarantined": u.Quarantined, "excluded": u.Excluded, "free": u.Free} {
		poolValues.WithLabelValues(pool, kind, state).Set(float64(n))
	}
}
