// SPDX-License-Identifier: Apache-2.0

package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
)

// Services serves the healthCheckNodePorts of Services with
// externalTrafficPolicy Local. Safe for concurrent use.
type Services struct {
	healthy func() bool

	mu      sync.Mutex
	servers map[types.NamespacedName]*server
}

// server answers for one Service.
type server struct {
	name types.NamespacedName
	port uint16
	http *http.Server
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	ready int
}

// NewServices gives Services without any. healthy says whether this node's
// forwarding works; if not, every Service is reported unhealthy here.
func NewServices(healthy func() bool) *Services {
	return &Services{healthy: healthy, servers: map[types.NamespacedName]*server{}}
}

// Set serves port for a Service, whose number of ready endpoints on this node
// is ready. Port 0 ends it. An error leaves the Service without an answer: until
// the port is free if that is in use, which is looked for, else until Set is
// called again.
func (s *Services) Set(ctx context.Context, name types.NamespacedName, port uint16, ready int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv := s.servers[name]
	if srv != nil && srv.port != port {
		srv.close()
		delete(s.servers, name)
		srv = nil
	}
	if port == 0 {
		return nil
	}
	if srv != nil {
		srv.set(ready)
		return nil
	}
	srv, err := s.serve(ctx, name, port, ready)
	if srv != nil {
		s.servers[name] = srv
	}
	if err != nil {
		return fmt.Errorf("serve health check port %d of Service %s: %w", port, name, err)
	}
	return nil
}

// Close ends all servers and returns when they have stopped.
func (s *Services) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, srv := range s.servers {
		srv.close()
		delete(s.servers, name)
	}
}

// serve starts a server. With a port in use it returns both the server, which
// waits for the port, and the error.
func (s *Services) serve(ctx context.Context, name types.NamespacedName, port uint16, ready int) (*server, error) {
	l, err := listen(ctx, port)
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		return nil, err
	}
	srv := &server{name: name, port: port, ready: ready, stop: make(chan struct{}), done: make(chan struct{})}
	srv.http = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { srv.answer(w, s.healthy()) }),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	go srv.run(l)
	return srv, err
}

func listen(ctx context.Context, port uint16) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", net.JoinHostPort("", strconv.Itoa(int(port))))
}

// run serves, after it has got the port if l is nil.
func (s *server) run(l net.Listener) {
	const again = time.Second
	defer close(s.done)
	for l == nil {
		select {
		case <-s.stop:
			return
		case <-time.After(again):
		}
		if got, err := listen(context.Background(), s.port); err == nil {
			l = got
		}
	}
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		_ = l.Close()
	}
}

func (s *server) close() {
	close(s.stop)
	_ = s.http.Close()
	<-s.done
}

func (s *server) set(ready int) {
	s.mu.Lock()
	s.ready = ready
	s.mu.Unlock()
}

// answer has kube-proxy's format; the header is a hint for weighted load
// balancers (KEP-3836).
func (s *server) answer(w http.ResponseWriter, healthy bool) {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	var body struct {
		Service struct {
			Namespace string `json:"namespace"`
			Name      string `json:"name"`
		} `json:"service"`
		LocalEndpoints      int  `json:"localEndpoints"`
		ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
	}
	body.Service.Namespace, body.Service.Name = s.name.Namespace, s.name.Name
	body.LocalEndpoints, body.ServiceProxyHealthy = ready, healthy
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(ready))
	if ready == 0 || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body)
}
