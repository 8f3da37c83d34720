// SPDX-License-Identifier: Apache-2.0

package healthcheck

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/httpserver"
)

// Services serves the healthCheckNodePorts of Services with
// externalTrafficPolicy Local. Safe for concurrent use.
type Services struct {
	healthy   func() bool
	addresses []netip.Prefix // none: all

	mu      sync.Mutex
	servers map[types.NamespacedName]*server
}

// server answers for one Service.
type server struct {
	name types.NamespacedName
	port uint16
	only []netip.Prefix
	http *http.Server
	stop chan struct{}
	done chan struct{}

	mu    sync.Mutex
	ready int
}

// NewServices gives Services without any. healthy says whether this node's
// forwarding works; if not, every Service is reported unhealthy here. Only the
// node's addresses in the given ranges answer, as with NodePorts; none: all.
func NewServices(healthy func() bool, addresses ...netip.Prefix) *Services {
	return &Services{healthy: healthy, addresses: addresses, servers: map[types.NamespacedName]*server{}}
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
	srv := &server{name: name, port: port, only: s.addresses, ready: ready, stop: make(chan struct{}), done: make(chan struct{})}
	listeners, err := srv.listen(ctx, nil)
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		for _, l := range listeners {
			_ = l.Close()
		}
		return nil, err
	}
	answer := func(w http.ResponseWriter, _ *http.Request) { srv.answer(w, s.healthy()) }
	srv.http = httpserver.New(httpserver.Limits{}, httpserver.ReadOnly(http.HandlerFunc(answer)))
	go srv.run(listeners)
	return srv, err
}

// anywhere stands for all of the node's addresses.
var anywhere netip.Addr

// listen opens the port on the node's addresses that it is not in open yet. With
// an error it gives those that could be opened.
func (s *server) listen(ctx context.Context, open map[netip.Addr]bool) (map[netip.Addr]net.Listener, error) {
	addresses, err := within(s.only)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]net.Listener{}
	var errs []error
	for _, a := range addresses {
		if open[a] {
			continue
		}
		host := ""
		if a != anywhere {
			host = a.String()
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(s.port))))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[a] = httpserver.Listener(l, nil, httpserver.Limits{})
	}
	return out, errors.Join(errs...)
}

// within gives this node's addresses that are in ranges.
func within(ranges []netip.Prefix) ([]netip.Addr, error) {
	if len(ranges) == 0 {
		return []netip.Addr{anywhere}, nil
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this node's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := p.Addr().Unmap()
		in := func(r netip.Prefix) bool { return r.Contains(addr) }
		// Link-local ones would need a zone, and nobody outside asks there.
		if !addr.IsLinkLocalUnicast() && slices.ContainsFunc(ranges, in) && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out, nil
}

// look is how often ports that are in use are tried again, and addresses looked
// for that have come.
const look = time.Second

// run serves, also where the port gets free or an address comes only later.
func (s *server) run(listeners map[netip.Addr]net.Listener) {
	defer close(s.done)
	var serving sync.WaitGroup
	defer serving.Wait()
	gone := make(chan netip.Addr)
	open := map[netip.Addr]bool{}
	for {
		for a, l := range listeners {
			open[a] = true
			serving.Go(func() {
				if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					_ = l.Close()
				}
				select {
				case gone <- a:
				case <-s.stop:
				}
			})
		}
		var again <-chan time.Time
		if !open[anywhere] {
			again = time.After(look)
		}
		select {
		case <-s.stop:
			return
		case a := <-gone:
			delete(open, a)
			listeners = nil
		case <-again:
			// What cannot be opened now is tried again.
			listeners, _ = s.listen(context.Background(), open)
		}
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
