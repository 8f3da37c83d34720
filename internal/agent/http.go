// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/causeway-lb/causeway/internal/healthcheck"
	"github.com/causeway-lb/causeway/internal/httpserver"
	"github.com/causeway-lb/causeway/internal/proxy/kubeproxy"
	"github.com/causeway-lb/causeway/internal/version"
)

// metricsHandler serves metrics, health and mode. names is true if it gets authorized
// requests only.
func (a *Agent) metricsHandler(names bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.Handle("/healthz", healthcheck.Handler(a.health, healthcheck.Config{Names: names}))
	if !a.cfg.AnnounceOnly { // else kube-proxy says
		mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			w.Header().Set(kubeproxy.AgentHeader, version.String())
			mode, ok := a.mode.Load().(string)
			if !ok {
				http.Error(w, "no mode has programmed the kernel yet", http.StatusServiceUnavailable)
				return
			}
			_, _ = io.WriteString(w, mode)
		})
	}
	return mux
}

// endpoint is where a server is.
type endpoint struct {
	what, address     string
	tls               bool
	certFile, keyFile string // of tls; "": self-signed
}

// serveHTTP serves until ctx ends; an address of "" serves nothing.
func serveHTTP(ctx context.Context, at endpoint, h http.Handler) error {
	what := at.what
	if at.address == "" || at.address == "0" {
		return nil
	}
	l, err := listen(ctx, what, at.address)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	var config *tls.Config
	if at.tls {
		if config, err = httpserver.TLS(at.certFile, at.keyFile); err != nil {
			_ = l.Close()
			return fmt.Errorf("serve %s: %w", what, err)
		}
	}
	// The agent does not wait for its last answers to be read.
	limits := httpserver.Limits{Last: -1}
	if err := httpserver.Serve(ctx, l, config, limits, httpserver.ReadOnly(h)); err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	return nil
}

// listen waits while another program has the port: the kube-proxy that this agent
// replaces uses the same ports, and may run until the kernel is programmed.
func listen(ctx context.Context, what, address string) (net.Listener, error) {
	const again = 200 * time.Millisecond
	var lc net.ListenConfig
	for told := false; ; {
		l, err := lc.Listen(ctx, "tcp", address)
		if !errors.Is(err, unix.EADDRINUSE) {
			return l, err
		}
		if !told {
			told = true
			logr.FromContextOrDiscard(ctx).Info("Port is in use; waiting for it, as kube-proxy may still run here", "server", what, "address", address)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(again):
		}
	}
}

// Metrics is a Part that registers metrics of something else.
func Metrics(name string, collectors ...prometheus.Collector) Part {
	return Part{Name: name + " metrics", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(collectors...)
		<-ctx.Done()
		return nil
	}}
}
