// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
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
	l, err := listen(ctx, what, address)
	if ctx.Err() != nil {
		return nil
	}
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

// listen waits while somebody else has the port: the kube-proxy that this agent
// takes over from has the same ones, and may go on until the kernel is
// programmed.
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
			logr.FromContextOrDiscard(ctx).Info("Port is in use and waited for, kube-proxy may still run here", "server", what, "address", address)
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
