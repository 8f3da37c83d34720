// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/internal/certs"
	"github.com/causeway-lb/causeway/internal/testkit"
)

func keeper(t *testing.T) *certs.Keeper {
	t.Helper()
	k, err := certs.NewKeeper(certs.Config{
		Client: fake.NewClientBuilder().WithScheme(controllers.NewScheme()).Build(),
		Secret: client.ObjectKey{Namespace: "ns", Name: "tls"}, DNSNames: []string{"webhook-service.ns.svc"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// freePort is a port of 127.0.0.1 that nobody has at the moment.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestHooks(t *testing.T) {
	k := keeper(t)
	s := newHooks(freePort(t), k)
	s.Register("/hook", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	if s.StartedChecker()(nil) == nil {
		t.Error("ready before it has started")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Start(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	testkit.EventuallyTrue(t, 20*time.Second, "started", s.started.Load)
	if s.StartedChecker()(nil) == nil {
		t.Error("ready without a certificate")
	}
	if err := k.Sync(ctx, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.StartedChecker()(nil); err != nil {
		t.Errorf("not ready: %v", err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Post("https://127.0.0.1:"+strconv.Itoa(s.port)+"/hook", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusTeapot || resp.ProtoMajor != 1 {
		t.Errorf("%s by HTTP/%d, want the hook's answer by HTTP/1", resp.Status, resp.ProtoMajor)
	}
}

func TestHooksAtPortZeroServeNothing(t *testing.T) {
	s := newHooks(0, keeper(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Start(ctx); err != nil {
		t.Error(err)
	}
	if err := s.StartedChecker()(nil); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// Metrics name Services: only a loopback address shows them to everyone.
func TestMetricsRequireAuthorization(t *testing.T) {
	for address, want := range map[string]int{
		"127.0.0.1:8080": 200, "[::1]:8080": 200, "localhost:8080": 200,
		":8080": 401, "0.0.0.0:8080": 401, "[::]:8080": 401, "192.0.2.1:8080": 401, "nonsense": 401,
	} {
		h, err := metricsHandler(&rest.Config{Host: "http://192.0.2.9"}, address)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != want {
			t.Errorf("at %s: %d, want %d", address, w.Code, want)
		}
		f := flags{metricsAddress: address}
		if f.certified() != (want == 401) {
			t.Errorf("at %s: served with a certificate: %t", address, f.certified())
		}
	}
	if (flags{metricsAddress: "0"}).certified() {
		t.Error("a certificate for nothing")
	}
}
