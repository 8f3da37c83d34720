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
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func TestHandler(t *testing.T) {
	good := Health{Started: true, InSync: true, NodeEligible: true}
	refused := Health{Started: true, NodeEligible: true, Err: errors.New("sync nftables: refused"), LastUpdated: time.Unix(1000, 0)}
	leaving := Health{Started: true, InSync: true}
	for _, tc := range []struct {
		name                   string
		health                 Health
		healthz, livez, readyz int
	}{
		{"good", good, 200, 200, 200},
		{"before the first sync", Health{NodeEligible: true}, 503, 200, 503},
		{"the kernel refuses", refused, 503, 200, 503},
		{"the node is to be deleted", leaving, 503, 200, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := httptest.NewServer(Handler(func() Health { return tc.health }))
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
				if err != nil || resp.StatusCode != want || body.Healthy != (want == 200) {
					t.Errorf("%s: %d, healthy %v, %v; want %d", path, resp.StatusCode, body.Healthy, err, want)
				}
				if body.Kernel.InSync != tc.health.InSync || (tc.health.Err != nil) != (body.Kernel.Error != "") {
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
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(url)
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if !strings.Contains(string(body), `"localEndpoints":2`) {
				t.Errorf("answer %s, want 2 endpoints", body)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("never served: %v", err)
		}
	}
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
