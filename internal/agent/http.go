// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func metricsHandler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	return mux
}

// serveHTTP serves until ctx ends; "" serves nothing.
func serveHTTP(ctx context.Context, what, address string, h http.Handler) error {
	if address == "" || address == "0" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	return nil
}

// Metrics is a Part that registers metrics of something else.
func Metrics(name string, collectors ...prometheus.Collector) Part {
	return Part{Name: name + " metrics", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(collectors...)
		<-ctx.Done()
		return nil
	}}
}
