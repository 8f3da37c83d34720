// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/causeway-lb/causeway/internal/certs"
	"github.com/causeway-lb/causeway/internal/drain"
	"github.com/causeway-lb/causeway/internal/httpserver"
)

// hookLimits let an API server make as many calls at a time as it has requests in flight
// by default, each with a connection of its own. A call ends within the timeout of the
// webhook configurations.
var hookLimits = httpserver.Limits{Connections: 2048, PerClient: 1024, Request: 15 * time.Second, Idle: time.Minute, Last: 10 * time.Second}

// hooks serve the webhooks. Unlike controller-runtime's server they bound connections and
// the time for a body.
type hooks struct {
	webhook.Server // registers, and has the mux
	port           int
	config         *tls.Config
	started        atomic.Bool
}

// newHooks returns the server of the webhooks; at port 0 it serves nothing.
func newHooks(port int, keeper *certs.Keeper) *hooks {
	return &hooks{Server: webhook.NewServer(webhook.Options{Port: port}), port: port, config: tlsConfig(keeper)}
}

func tlsConfig(keeper *certs.Keeper) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: keeper.GetCertificate}
}

// requireClients requires clients to show a client certificate of an authority of the
// file, or, as other replicas do, the certificate that is served here.
func requireClients(config *tls.Config, file string, keeper *certs.Keeper) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read --webhook-client-ca: %w", err)
	}
	authorities := x509.NewCertPool()
	if !authorities.AppendCertsFromPEM(text) {
		return fmt.Errorf("read --webhook-client-ca: %s holds no certificate: write the authorities as PEM", file)
	}
	config.ClientAuth = tls.RequireAnyClientCert
	config.VerifyConnection = func(state tls.ConnectionState) error {
		shown := state.PeerCertificates
		if own, err := keeper.GetCertificate(nil); err == nil && bytes.Equal(own.Certificate[0], shown[0].Raw) {
			return nil // another replica: the handshake has proved that it has the key
		}
		between := x509.NewCertPool()
		for _, cert := range shown[1:] {
			between.AddCert(cert)
		}
		_, err := shown[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		return err
	}
	return nil
}

// Start implements manager.Runnable.
func (s *hooks) Start(ctx context.Context) error {
	if s.port == 0 {
		<-ctx.Done()
		return nil
	}
	l, err := drain.Listen(ctx, net.JoinHostPort("", strconv.Itoa(s.port)))
	if err != nil {
		return fmt.Errorf("serve webhooks: %w", err)
	}
	s.started.Store(true)
	if err := httpserver.Serve(ctx, l, s.config, hookLimits, s.WebhookMux()); err != nil {
		return fmt.Errorf("serve webhooks: %w", err)
	}
	return nil
}

// StartedChecker implements webhook.Server: it succeeds when a client could connect.
func (s *hooks) StartedChecker() healthz.Checker {
	return func(*http.Request) error {
		if s.port == 0 {
			return nil
		}
		if !s.started.Load() {
			return errors.New("the webhooks are not served yet")
		}
		if _, err := s.config.GetCertificate(nil); err != nil {
			return err
		}
		return nil
	}
}

// certified reports whether anything is served over TLS.
func (f flags) certified() bool {
	return f.webhookPort != 0 || on(f.metricsAddress) && !loopback(f.metricsAddress)
}

// on reports whether a server is wanted at an address.
func on(address string) bool { return address != "" && address != "0" }

// loopback reports whether only this host, or Pod, reaches an address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// addServers adds the servers of health and metrics.
func addServers(mgr ctrl.Manager, f flags, keeper *certs.Keeper) error {
	if on(f.healthAddress) {
		ready := mgr.GetWebhookServer().StartedChecker()
		mux := http.NewServeMux()
		for path, handler := range map[string]http.Handler{
			"/healthz": &healthz.Handler{Checks: map[string]healthz.Checker{"ping": healthz.Ping}},
			"/readyz":  &healthz.Handler{Checks: map[string]healthz.Checker{"webhooks": ready}},
		} {
			mux.Handle(path, http.StripPrefix(path, handler))
			mux.Handle(path+"/", http.StripPrefix(path, handler))
		}
		if err := addServer(mgr, "health", f.healthAddress, nil, mux); err != nil {
			return err
		}
	}
	if !on(f.metricsAddress) {
		return nil
	}
	handler, err := metricsHandler(mgr.GetConfig(), f.metricsAddress)
	if err != nil {
		return err
	}
	config := tlsConfig(keeper)
	if loopback(f.metricsAddress) {
		config = nil
	}
	return addServer(mgr, "metrics", f.metricsAddress, config, handler)
}

// metricsHandler serves metrics, except at a loopback address only to clients that the API
// server authorizes to get /metrics.
func metricsHandler(config *rest.Config, address string) (http.Handler, error) {
	var handler http.Handler = promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError})
	if !loopback(address) {
		kube, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("make client: %w", err)
		}
		handler = httpserver.Authorized(kube, "/metrics", handler)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	return mux, nil
}

// addServer adds a server that only reports.
func addServer(mgr ctrl.Manager, name, address string, config *tls.Config, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve %s: %w", name, err)
	}
	limits := httpserver.Limits{}
	return mgr.Add(&manager.Server{
		Name: name, Server: httpserver.New(limits, httpserver.ReadOnly(h)), Listener: httpserver.Listener(l, config, limits),
	})
}
