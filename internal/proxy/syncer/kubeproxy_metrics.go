// SPDX-License-Identifier: Apache-2.0

package syncer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// kubeProxy are kube-proxy's metrics that mean the same here, by their names there;
// see docs/kube-proxy.md. Both families are synced together, so that each value is
// there for either.
type kubeProxy struct {
	duration, full, partial, programming *prometheus.HistogramVec
	last, queued                         *prometheus.GaugeVec
	nftables, iptables                   *prometheus.CounterVec
}

var families = []string{"IPv4", "IPv6"}

func newKubeProxy() *kubeProxy {
	labels := []string{"ip_family"}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "kubeproxy", Name: name, Help: help, Buckets: buckets}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: name, Help: help}, labels)
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: help}, labels)
	}
	sync := prometheus.ExponentialBuckets(0.001, 2, 15)
	// Seconds up to one minute, then coarser: the SLI's buckets.
	latency := []float64{0.25, 0.5}
	for s := 1.0; s < 60; s++ {
		latency = append(latency, s)
	}
	for s := 60.0; s < 120; s += 5 {
		latency = append(latency, s)
	}
	for s := 120.0; s <= 300; s += 30 {
		latency = append(latency, s)
	}
	return &kubeProxy{
		duration:    histogram("sync_proxy_rules_duration_seconds", "Time of a sync.", sync),
		full:        histogram("sync_full_proxy_rules_duration_seconds", "Time of a sync that reads the kernel back.", sync),
		partial:     histogram("sync_partial_proxy_rules_duration_seconds", "Time of a sync of what has changed.", sync),
		programming: histogram("network_programming_duration_seconds", "Time from the change of a Pod or Service to the kernel's acceptance.", latency),
		last:        gauge("sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded, in Unix time."),
		queued:      gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a change last asked for a sync, in Unix time."),
		nftables:    counter("sync_proxy_rules_nftables_sync_failures_total", "Syncs that failed in mode nftables."),
		iptables:    counter("sync_proxy_rules_iptables_restore_failures_total", "Syncs that failed in modes iptables and ipvs."),
	}
}

// KubeProxy gives kube-proxy's metrics, to be registered where no kube-proxy
// runs. mode gives the proxy mode in use.
func (m *Metrics) KubeProxy(mode func() string) []prometheus.Collector {
	m.mode = mode
	k := m.kubeProxy
	return []prometheus.Collector{k.duration, k.full, k.partial, k.programming, k.last, k.queued, k.nftables, k.iptables}
}

func (k *kubeProxy) synced(full bool, mode string, elapsed time.Duration, err error) {
	for _, f := range families {
		k.duration.WithLabelValues(f).Observe(elapsed.Seconds())
		if full {
			k.full.WithLabelValues(f).Observe(elapsed.Seconds())
		} else {
			k.partial.WithLabelValues(f).Observe(elapsed.Seconds())
		}
		switch {
		case err == nil:
			k.last.WithLabelValues(f).SetToCurrentTime()
		case mode == "nftables":
			k.nftables.WithLabelValues(f).Inc()
		case mode == "iptables" || mode == "ipvs":
			k.iptables.WithLabelValues(f).Inc()
		}
	}
}

func (k *kubeProxy) took(d time.Duration) {
	for _, f := range families {
		k.programming.WithLabelValues(f).Observe(d.Seconds())
	}
}

func (k *kubeProxy) notified(at time.Time) {
	for _, f := range families {
		k.queued.WithLabelValues(f).Set(float64(at.UnixNano()) / 1e9)
	}
}
