// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of one Syncer.
type Metrics struct {
	duration    *prometheus.HistogramVec
	programming prometheus.Histogram
	noticing    prometheus.Histogram
	services    prometheus.Counter
	elements    *prometheus.CounterVec
	objects     prometheus.Gauge
	drift       prometheus.Counter
	errors      prometheus.Counter
	inSync      prometheus.Gauge
	rejected    prometheus.Gauge
	last        prometheus.Gauge

	kubeProxy *kubeProxy
	mode      func() string // nil: not told
}

// NewMetrics makes the metrics of a backend; register them with Collectors.
func NewMetrics(backendName string) *Metrics {
	labels := prometheus.Labels{"backend": backendName}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "causeway", Subsystem: "proxy", Name: name, Help: help, ConstLabels: labels}
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts(opts(name, help)))
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts(opts(name, help)))
	}
	return &Metrics{
		kubeProxy: newKubeProxy(),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "causeway", Subsystem: "proxy", Name: "sync_duration_seconds", ConstLabels: labels,
			Help:    "Time from taking in changes, computing included, to the kernel's acceptance, by kind of sync: change or full.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}, []string{"kind"}),
		programming: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "causeway", Subsystem: "proxy", Name: "network_programming_duration_seconds", ConstLabels: labels,
			Help:    "Time from the change of a Pod or Service that caused it to the kernel's acceptance.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 18),
		}),
		noticing: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "causeway", Subsystem: "proxy", Name: "event_duration_seconds", ConstLabels: labels,
			Help:    "Time from the delivery of a change by the API server's watch to the kernel's acceptance.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 2, 20),
		}),
		services: counter("changed_services_total", "Services whose rules were changed."),
		elements: prometheus.NewCounterVec(prometheus.CounterOpts(opts("elements_total",
			"Elements written to the kernel, by operation: add or delete.")), []string{"operation"}),
		objects:  gauge("elements", "Elements in the kernel."),
		drift:    counter("drift_total", "Objects that others had changed or deleted, and that were repaired."),
		errors:   counter("sync_errors_total", "Syncs that the kernel refused."),
		inSync:   gauge("in_sync", "1 if the kernel matches what it should, else 0."),
		rejected: gauge("rejected_services", "Services whose rules the kernel rejects; the others are programmed."),
		last:     gauge("last_sync_timestamp_seconds", "When a sync last succeeded, in Unix time."),
	}
}

// Collectors are all metrics, to be registered.
func (m *Metrics) Collectors() []prometheus.Collector {
	return []prometheus.Collector{m.duration, m.programming, m.noticing, m.services, m.elements, m.objects, m.drift, m.errors, m.inSync, m.rejected, m.last}
}

func (m *Metrics) synced(done *Applied, elapsed time.Duration, err error) {
	kind := "change"
	if done.Full {
		kind = "full"
	}
	m.duration.WithLabelValues(kind).Observe(elapsed.Seconds())
	if m.mode != nil {
		m.kubeProxy.synced(done.Full, m.mode(), elapsed, err)
	}
	if err != nil {
		m.errors.Inc()
		m.inSync.Set(0)
		return
	}
	m.inSync.Set(1)
	if len(done.Rejected) > 0 {
		m.inSync.Set(0)
	}
	m.rejected.Set(float64(len(done.Rejected)))
	m.last.SetToCurrentTime()
	m.services.Add(float64(len(done.Changes)))
	r := done.Report
	m.elements.WithLabelValues("add").Add(float64(r.Added))
	m.elements.WithLabelValues("delete").Add(float64(r.Deleted))
	m.objects.Set(float64(r.Objects))
	m.drift.Add(float64(r.Drift))
}

// took measures from a cause to now. What happened before begun, when this
// process began to program, says nothing about this process.
func (m *Metrics) took(c cause, now, begun time.Time) {
	m.noticing.Observe(now.Sub(c.noticed).Seconds())
	if c.trigger.After(begun) {
		m.programming.Observe(now.Sub(c.trigger).Seconds())
		if m.mode != nil {
			m.kubeProxy.took(now.Sub(c.trigger))
		}
	}
}
