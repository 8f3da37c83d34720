// SPDX-License-Identifier: Apache-2.0

package endpoints

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

var (
	sliceWrites = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "causeway_endpointslice_writes_total",
		Help: "EndpointSlice API writes, by operation (create, update, delete) and result (success, outdated, error).",
	}, []string{"operation", "result"})

	slicePasses = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "causeway_endpointslice_sync_duration_seconds",
		Help:    "How long a pass over one Service took, its writes included, by result (unchanged, written, standby, error).",
		Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
	}, []string{"result"})

	sliceDelay = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "causeway_endpointslice_trigger_delay_seconds",
		Help:    "From the change of a Pod or Service, as its timestamps have it (whole seconds), to its slices being written.",
		Buckets: prometheus.ExponentialBuckets(0.25, 2, 10),
	})

	sliceServices = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_endpointslice_services",
		Help: "Services with a selector or mirrored Endpoints, by who keeps their slices: causeway, or standby (another controller does).",
	}, []string{"manager"})

	sliceObjects = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "causeway_endpointslice_objects",
		Help: "What Causeway keeps: endpoints, slices, and slices_needed (as few as could hold the endpoints).",
	}, []string{"kind"})
)

// serviceCount is what one Service adds to the gauges.
type serviceCount struct {
	managed                   bool
	endpoints, slices, needed int
}

// sliceGauges sums up over the Services.
type sliceGauges struct {
	mu    sync.Mutex
	count map[types.NamespacedName]serviceCount
}

// set replaces what the Service adds; nil takes it out.
func (g *sliceGauges) set(name types.NamespacedName, count *serviceCount) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if old, ok := g.count[name]; ok {
		addGauges(old, -1)
		delete(g.count, name)
	}
	if count == nil {
		return
	}
	if g.count == nil {
		g.count = map[types.NamespacedName]serviceCount{}
	}
	g.count[name] = *count
	addGauges(*count, 1)
}

func addGauges(count serviceCount, sign float64) {
	manager := "standby"
	if count.managed {
		manager = "causeway"
	}
	sliceServices.WithLabelValues(manager).Add(sign)
	sliceObjects.WithLabelValues("endpoints").Add(sign * float64(count.endpoints))
	sliceObjects.WithLabelValues("slices").Add(sign * float64(count.slices))
	sliceObjects.WithLabelValues("slices_needed").Add(sign * float64(count.needed))
}
