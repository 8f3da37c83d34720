// SPDX-License-Identifier: Apache-2.0

package healthcheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestHandler(t *testing.T) {
	good := Health{Started: true, InSync: true, NodeEligible: true}
	refused := Health{Started: true, NodeEligible: true, Err: errors.New("sync nftables: refused"), LastUpdated: time.Unix(1000, 0)}
	leaving := Health{Started: true, InSync: true}
	late := Health{Started: true, InSync: true, NodeEligible: true, Late: true, Behind: time.Unix(900, 0)}
	stuck := late
	stuck.Stuck = true
	for _, tc := range []struct {
		name                   string
		health                 Health
		healthz, livez, readyz int
	}{
		{"good", good, 200, 200, 200},
		{"before the first sync", Health{NodeEligible: true}, 200, 200, 503},
		{"the first sync is refused", Health{NodeEligible: true, Err: errors.New("refused")}, 503, 200, 503},
		{"the first sync does not return", Health{NodeEligible: true, Late: true}, 503, 200, 503},
		{"the kernel refuses", refused, 503, 200, 503},
		{"a sync does not return", late, 503, 200, 503},
		{"a sync does not return for very long", stuck, 503, 503, 503},
		{"the node is to be deleted", leaving, 503, 200, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(Handler(func() Health { return tc.health }, Config{}))
			defer srv.Close()
			for path, want := range map[string]int{"/healthz": tc.healthz, "/livez": tc.livez, "/readyz": tc.readyz} {
				resp, err := http.Get(srv.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				var body struct {
					LastUpdated, CurrentTime time.Time
					Healthy                  bool
					NodeEligible             *bool
					Kernel                   struct {
						InSync bool
						Error  string
					}
				}
				err = json.NewDecoder(resp.Body).Decode(&body)
				_ = resp.Body.Close()
				healthy := want == 200 || path == "/healthz" && !tc.health.NodeEligible // as kube-proxy has it
				if err != nil || resp.StatusCode != want || body.Healthy != healthy {
					t.Errorf("%s: %d, healthy %v, %v; want %d", path, resp.StatusCode, body.Healthy, err, want)
				}
				if body.Kernel.InSync != (tc.health.InSync && !tc.health.Late) || (tc.health.Err != nil) != (body.Kernel.Error != "") {
					t.Errorf("%s: kernel %+v", path, body.Kernel)
				}
				if (path == "/healthz") != (body.NodeEligible != nil) {
					t.Errorf("%s: nodeEligible %v", path, body.NodeEligible)
				}
				if body.CurrentTime.IsZero() || want == 200 && !body.LastUpdated.Equal(body.CurrentTime) {
					t.Errorf("%s: times %v, %v", path, body.LastUpdated, body.CurrentTime)
				}
			}
		})
	}
}

// Names of Services, and what the kernel says of them, are for the node itself and
// for who was authorized.
func TestNames(t *testing.T) {
	health := func() Health {
		return Health{Started: true, NodeEligible: true, Refused: []string{"tenant/web"}, Err: errors.New("set of tenant/web: refused")}
	}
	for _, tc := range []struct {
		name, remote string
		authorized   bool
		want         bool
	}{
		{"from the LAN", "192.0.2.50:4711", false, false},
		{"from the LAN, IPv6", "[2001:db8::50]:4711", false, false},
		{"from the node itself", "127.0.0.1:4711", false, true},
		{"from the node itself, IPv6", "[::1]:4711", false, true},
		{"authorized", "192.0.2.50:4711", true, true},
	} {
		for _, path := range []string{"/healthz", "/livez", "/readyz"} {
			counted := 0
			h := Handler(health, Config{Names: tc.authorized, Count: func(p string, status int) {
				if p == path && status > 0 {
					counted = status
				}
			}})
			r := httptest.NewRequest("GET", path, nil)
			r.RemoteAddr = tc.remote
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := strings.Contains(w.Body.String(), "tenant"); got != tc.want {
				t.Errorf("%s %s: %s names Services: %v, want %v", tc.name, path, w.Body, got, tc.want)
			}
			if !strings.Contains(w.Body.String(), `"rejectedServices":1`) {
				t.Errorf("%s %s: %s does not count them", tc.name, path, w.Body)
			}
			if counted != w.Code {
				t.Errorf("%s %s: counted as %d, answered %d", tc.name, path, counted, w.Code)
			}
		}
	}
}

// Health check ports answer on the node's addresses in the ranges alone, also on
// those that come later.
func TestServicesOnSomeAddresses(t *testing.T) {
	nstest.Require(t, "ip")
	nstest.Run(t, "ip", "address", "replace", "192.0.2.11/32", "dev", "lo")
	nstest.Run(t, "ip", "address", "replace", "2001:db8::11/128", "dev", "lo", "nodad")
	s := NewServices(func() bool { return true }, netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64"))
	defer s.Close()
	const port = 31998
	if err := s.Set(t.Context(), types.NamespacedName{Namespace: "default", Name: "web"}, port, 1); err != nil {
		t.Fatal(err)
	}
	dial := func(address string) error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(address, strconv.Itoa(port)), 5*time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	answers := func(address string) { // the kernel routes to a new address a moment later
		t.Helper()
		testkit.Eventually(t, 20*time.Second, address+" answers", func() error { return dial(address) })
	}
	answers("192.0.2.11")
	answers("2001:db8::11")
	for _, address := range []string{"127.0.0.1", "::1"} {
		if err := dial(address); err == nil {
			t.Errorf("%s answers, which is in no range", address)
		}
	}
	nstest.Run(t, "ip", "address", "replace", "192.0.2.12/32", "dev", "lo")
	answers("192.0.2.12")
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func ask(port uint16) (status int, weight, body string, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return 0, "", "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), strings.TrimSpace(string(b)), err
}

func TestServices(t *testing.T) {
	healthy := true
	s := NewServices(func() bool { return healthy })
	defer s.Close()
	web := types.NamespacedName{Namespace: "default", Name: "web"}
	port := freePort(t)
	set := func(p uint16, ready int) {
		t.Helper()
		if err := s.Set(t.Context(), web, p, ready); err != nil {
			t.Fatal(err)
		}
	}
	check := func(status int, weight, body string) {
		t.Helper()
		gotStatus, gotWeight, gotBody, err := ask(port)
		if err != nil || gotStatus != status || gotWeight != weight || gotBody != body {
			t.Errorf("%d, weight %q, %s, %v; want %d, %q, %s", gotStatus, gotWeight, gotBody, err, status, weight, body)
		}
	}
	set(port, 2)
	check(200, "2", `{"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`)
	set(port, 0)
	check(503, "0", `{"service":{"namespace":"default","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	set(port, 1)
	healthy = false
	check(503, "1", `{"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":false}`)
	healthy = true

	old := port
	port = freePort(t)
	set(port, 1)
	check(200, "1", `{"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	if _, _, _, err := ask(old); err == nil {
		t.Error("the old port still answers")
	}
	other := types.NamespacedName{Namespace: "default", Name: "other"}
	if err := s.Set(t.Context(), other, port, 1); err == nil {
		t.Error("two Services got one port")
	}
	set(0, 0)
	if _, _, _, err := ask(port); err == nil {
		t.Error("a Service without a port answers")
	}
	if err := s.Set(t.Context(), other, port, 1); err != nil {
		t.Errorf("the port is free again: %v", err)
	}
}

// A port that is in use, by the kube-proxy that still runs, is taken when it is
// free.
func TestServicesWaitForPort(t *testing.T) {
	other, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(other.Addr().(*net.TCPAddr).Port)
	s := NewServices(func() bool { return true })
	defer s.Close()
	name := types.NamespacedName{Namespace: "default", Name: "web"}
	if err := s.Set(t.Context(), name, port, 1); err == nil {
		t.Error("no error for a port in use")
	}
	if err := s.Set(t.Context(), name, port, 2); err != nil {
		t.Errorf("told again: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	testkit.Eventually(t, 20*time.Second, "served", func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); !strings.Contains(string(body), `"localEndpoints":2`) {
			t.Errorf("answer %s, want 2 endpoints", body)
		}
		return nil
	})
	// One that still waits ends at once.
	busy, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	waiting := types.NamespacedName{Namespace: "default", Name: "waiting"}
	_ = s.Set(t.Context(), waiting, uint16(busy.Addr().(*net.TCPAddr).Port), 1)
	if err := s.Set(t.Context(), waiting, 0, 0); err != nil {
		t.Error(err)
	}
}
