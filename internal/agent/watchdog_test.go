// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/internal/healthcheck"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// blocking is a Backend whose Sync waits for a word, whatever its context says, or
// fails.
type blocking struct {
	block, fail atomic.Bool
	release     chan struct{}
}

func (b *blocking) Name() string                  { return "nftables" }
func (b *blocking) Close() error                  { return nil }
func (b *blocking) Cleanup(context.Context) error { return nil }
func (b *blocking) Apply(context.Context, backend.Delta) (backend.Report, error) {
	return b.Resync(context.Background(), model.Desired{})
}

func (b *blocking) Resync(context.Context, model.Desired) (backend.Report, error) {
	if b.block.Load() {
		<-b.release
	}
	if b.fail.Load() {
		return backend.Report{}, errors.New("refused")
	}
	return backend.Report{}, nil
}

// A Sync that does not return: the node is not in sync, so that health checks
// fail and the announcer hands over, and after longer not alive. One that fails
// again and again is not in sync, but alive.
func TestWatchdogDetectsSyncThatDoesNotReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &blocking{release: make(chan struct{})}
		a, err := New(Config{Node: model.Node{Name: "node-1"}, REST: &rest.Config{Host: "http://192.0.2.10"}, Backend: b})
		must(t, err)
		a.problems = newProblemEvents(a.store, events.NewFakeRecorder(8))
		fill(t, a.store, nodeWithFacts("uid-1"))
		a.store.Listen(a.changed)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- a.syncer.Run(ctx) }()
		go a.watchdog.run(ctx)
		defer func() {
			cancel()
			must(t, <-ended)
		}()
		says := func(when string, healthz, livez, readyz int, announces bool) {
			t.Helper()
			synctest.Wait()
			h := healthcheck.Handler(a.health, healthcheck.Config{})
			for path, want := range map[string]int{"/healthz": healthz, "/livez": livez, "/readyz": readyz} {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				if w.Code != want {
					t.Errorf("%s: %s says %d, want %d", when, path, w.Code, want)
				}
			}
			if ok, _ := usable(a.syncer.Status(), time.Now()); ok != announces {
				t.Errorf("%s: announces %v, want %v", when, ok, announces)
			}
		}
		says("programmed", 200, 200, 200, true)

		b.block.Store(true)
		web := serviceOf("web")
		web.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.50", ClusterIPs: []string{"10.96.0.50"}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}
		fill(t, a.store, web)
		time.Sleep(time.Second)
		says("a second later", 200, 200, 200, true)
		_, again := usable(a.syncer.Status(), time.Now())
		time.Sleep(again)
		says("when usable asked to look again", 503, 200, 503, false)
		time.Sleep(time.Minute)
		says("a minute later", 503, 200, 503, false)
		time.Sleep(2 * time.Minute)
		says("minutes later", 503, 503, 503, false)

		b.fail.Store(true)
		b.block.Store(false)
		close(b.release)
		time.Sleep(5 * time.Minute)
		says("failing all the time", 503, 200, 503, false)
		b.fail.Store(false)
		time.Sleep(time.Minute)
		says("working again", 200, 200, 200, true)
		time.Sleep(time.Hour)
		says("without anything to do", 200, 200, 200, true)
	})
}
