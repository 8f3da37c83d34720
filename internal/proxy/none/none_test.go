// SPDX-License-Identifier: Apache-2.0

package none

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/syncer"
	"github.com/causeway-lb/causeway/internal/testkit"
)

// nothing is a cluster without Services.
type nothing struct{}

func (nothing) Names() []types.NamespacedName                           { return nil }
func (nothing) Input(types.NamespacedName) (in model.Input, found bool) { return in, false }

// A node is in sync for as long as its forwarder says that it is up to date.
func TestFollowsTheForwarder(t *testing.T) {
	var status atomic.Int32
	status.Store(http.StatusServiceUnavailable)
	forwarder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) }))
	defer forwarder.Close()
	s := run(t, Config{Health: forwarder.URL + "/livez", Interval: 5 * time.Millisecond})
	await(t, s, func(st syncer.Status) bool {
		return !st.Started && st.Err != nil && strings.Contains(st.Err.Error(), "503 Service Unavailable: it is not up to date")
	})
	status.Store(http.StatusOK)
	await(t, s, func(st syncer.Status) bool { return st.Started && st.InSync })
	status.Store(http.StatusServiceUnavailable)
	await(t, s, func(st syncer.Status) bool { return !st.InSync })
	status.Store(http.StatusOK)
	await(t, s, func(st syncer.Status) bool { return st.InSync })
	forwarder.Close()
	await(t, s, func(st syncer.Status) bool {
		return !st.InSync && strings.Contains(st.Err.Error(), "is kube-proxy running on this node")
	})
}

// A kube-proxy that has only just started is healthy and forwards nothing.
func TestStarting(t *testing.T) {
	for body, want := range map[string]bool{
		`{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:04:05Z","healthy":true}`:                                            true,
		`{"lastUpdated":"2026-01-02T03:04:05Z","healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:05Z","healthy":true}}}`:         false,
		`{"lastUpdated":"2026-01-02 03:04:05.67 +0000 UTC m=+1.2","currentTime":"2026-01-02 03:04:05.67 +0000 UTC m=+1.2","nodeEligible":true}`: false,
		"ok": false, "": false,
	} {
		if got := starting([]byte(body)); got != want {
			t.Errorf("%s: %v, want %v", body, got, want)
		}
	}
}

func TestAsksNobody(t *testing.T) {
	await(t, run(t, Config{}), func(st syncer.Status) bool { return st.InSync })
}

func TestValidate(t *testing.T) {
	for health, ok := range map[string]bool{"": true, KubeProxy: true, "https://[::1]:1/x": true, "localhost:10256": false, "ftp://a/b": false, "http://": false} {
		if err := (Config{Health: health}).Validate(); (err == nil) != ok {
			t.Errorf("%q: error %v", health, err)
		}
	}
}

func run(t *testing.T, cfg Config) *syncer.Syncer {
	t.Helper()
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := syncer.New(syncer.Config{Backend: b, Source: nothing{}, MaxBackoff: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func await(t *testing.T, s *syncer.Syncer, is func(syncer.Status) bool) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "the status", func() error {
		if st := s.Status(); !is(st) {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}
