// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/proxy/backend"
	"github.com/causeway-lb/causeway/internal/proxy/kubeproxy"
	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/nftables"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

// apiServer starts a real one in the test's namespace.
func apiServer(t *testing.T) *rest.Config {
	t.Helper()
	dir, err := controlplane.Assets(t.Context(), "etcd", "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	nstest.Run(t, "ip", "address", "replace", "192.0.2.10/32", "dev", "lo")
	env := &envtest.Environment{BinaryAssetsDirectory: dir, ControlPlaneStartTimeout: time.Minute}
	env.ControlPlane.GetAPIServer().Configure().
		Set("service-cluster-ip-range", "10.96.0.0/16").Set("advertise-address", "192.0.2.10")
	cfg, err := env.Start()
	if err != nil {
		t.Fatalf("start API server: %v", err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop API server: %v", err)
		}
	})
	return cfg
}

// running is an agent in this process.
type running struct {
	stop func()
	base string
}

func newNftables(t *testing.T) *nftables.Backend {
	t.Helper()
	b, err := nftables.New(nftables.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// startAgent closes b when it stops.
func startAgent(t *testing.T, cfg *rest.Config, b backend.Backend) *running {
	t.Helper()
	a, err := New(Config{
		REST: cfg, Backend: b,
		HealthAddress: "127.0.0.1:10256", MetricsAddress: "127.0.0.1:10249",
		Node: model.Node{Name: "node-1", ExternalIPRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(logr.NewContext(t.Context(), testr.New(t)))
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	r := &running{base: "http://127.0.0.1:10256"}
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("agent: %v", err)
		}
		if err := b.Close(); err != nil {
			t.Errorf("close backend: %v", err)
		}
	}
	t.Cleanup(r.stop)
	testkit.Eventually(t, 20*time.Second, "ready", func() error { return get(r.base+"/readyz", http.StatusOK) })
	return r
}

func get(url string, want int) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != want {
		return fmt.Errorf("GET %s: %d %s, want %d", url, resp.StatusCode, body, want)
	}
	return nil
}

// pod is a TCP server that says its name, on an address of the loopback
// interface: an endpoint on this node.
func pod(t *testing.T, name, addr string) {
	t.Helper()
	nstest.Run(t, "ip", "address", "replace", addr+"/32", "dev", "lo")
	l, err := net.Listen("tcp", addr+":8080")
	if err != nil {
		t.Fatal(err)
	}
	nstest.Serve(t, l, nstest.Say(name))
}

// ask dials and returns what the server says.
func ask(addr string) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

func answers(addr, want string) func() error {
	return func() error {
		got, err := ask(addr)
		if err == nil && got != want {
			err = fmt.Errorf("%s answered %q, want %q", addr, got, want)
		}
		return err
	}
}

func refuses(addr string) func() error {
	return func() error {
		got, err := ask(addr)
		if err == nil {
			return fmt.Errorf("%s answered %q, want refusal", addr, got)
		}
		if !strings.Contains(err.Error(), "refused") {
			return err
		}
		return nil
	}
}

func TestAgent(t *testing.T) {
	nstest.Require(t, "ip", "nft")
	cfg := apiServer(t)
	kube := kubernetes.NewForConfigOrDie(cfg)
	ctx := t.Context()
	mustCreate(t, kube)
	pod(t, "one", "10.244.1.5")
	pod(t, "two", "10.244.1.6")
	// A host that is no node of a cluster routes nowhere else.
	nstest.Run(t, "ip", "route", "replace", "default", "dev", "lo")
	a := startAgent(t, cfg, newNftables(t))

	testkit.Eventually(t, 5*time.Second, "forwarding", answers("10.96.0.50:80", "one"))
	testkit.Eventually(t, 5*time.Second, "refusing", refuses("10.96.0.50:81"))
	testkit.Eventually(t, 5*time.Second, "forwarding an allowed external IP", answers("198.51.100.7:80", "one"))
	if err := get(a.base+"/healthz", http.StatusOK); err != nil {
		t.Error(err)
	}
	if mode, err := body("http://127.0.0.1:10249/proxyMode"); err != nil || mode != "nftables" {
		t.Errorf("/proxyMode says %q (%v)", mode, err)
	}
	if how := kubeproxy.Running(t.Context()); how != "" {
		t.Errorf("the agent is taken for kube-proxy: %s", how)
	}
	for _, name := range []string{
		"kubeproxy_sync_proxy_rules_duration_seconds_count", "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
		"kubeproxy_proxy_healthz_total",
	} {
		if err := metricAbove(name, 0); err != nil {
			t.Error(err)
		}
	}
	all, err := body("http://127.0.0.1:10249/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"service", "endpoint"} {
		if name = "\nkubeproxy_sync_proxy_rules_" + name + "_changes_total "; !strings.Contains(all, name) {
			t.Errorf("no metric%s", name)
		}
	}
	testkit.Eventually(t, 5*time.Second, "healthy for load balancers", func() error { return get("http://127.0.0.1:31999", http.StatusOK) })
	testkit.Eventually(t, 10*time.Second, "warned of", func() error { return hasEvent(kube, "ExternalIPNotAllowed") })

	t.Run("repairs what others flush", func(t *testing.T) {
		nstest.Run(t, "nft", "add", "table", "ip", "foreign")
		nstest.Run(t, "nft", "delete", "table", "ip", "causeway")
		testkit.Eventually(t, 10*time.Second, "repaired", answers("10.96.0.50:80", "one"))
		nstest.Run(t, "nft", "list", "table", "ip", "foreign")
		testkit.Eventually(t, 5*time.Second, "counted", func() error { return metricAbove("causeway_proxy_drift_total", 0) })
		testkit.Eventually(t, 10*time.Second, "told", func() error { return hasEvent(kube, "RulesRepaired") })
	})

	t.Run("forwards while the agent is down", func(t *testing.T) {
		a.stop()
		if err := answers("10.96.0.50:80", "one")(); err != nil {
			t.Error(err)
		}
		sl, err := kube.DiscoveryV1().EndpointSlices("default").Get(ctx, "web-1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		sl.Endpoints[0].Addresses = []string{"10.244.1.6"}
		if _, err := kube.DiscoveryV1().EndpointSlices("default").Update(ctx, sl, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := answers("10.96.0.50:80", "one")(); err != nil {
			t.Error(err)
		}
	})
	b := &refusable{Backend: newNftables(t), service: serviceName{Namespace: "default", Name: "web"}}
	startAgent(t, cfg, b)
	testkit.Eventually(t, 5*time.Second, "forwarding to the new endpoint", answers("10.96.0.50:80", "two"))

	t.Run("keeps the old state while the kernel refuses the new one", func(t *testing.T) {
		keepsOldState(t, kube, a.base, b)
	})

	t.Run("is unhealthy while the kernel refuses everything", func(t *testing.T) {
		end := nstest.Own(t, "ip causeway")
		for _, path := range []string{"/healthz", "/readyz"} {
			testkit.Eventually(t, 10*time.Second, "unhealthy", func() error { return get(a.base+path, http.StatusServiceUnavailable) })
		}
		if text, err := body(a.base + "/healthz"); err != nil || !strings.Contains(text, "operation not permitted") {
			t.Errorf("/healthz says %s (%v), want why", text, err)
		}
		if v, err := metric("causeway_proxy_in_sync"); err != nil || v != 0 {
			t.Errorf("metric in_sync is %v (%v), want 0", v, err)
		}
		if err := metricAbove("causeway_proxy_sync_errors_total", 0); err != nil {
			t.Error(err)
		}
		end() // the table goes with its owner
		testkit.Eventually(t, 40*time.Second, "healthy again", func() error { return get(a.base+"/healthz", http.StatusOK) })
		if err := answers("10.96.0.50:80", "one")(); err != nil {
			t.Error(err)
		}
	})

	t.Run("refuses without the Service", func(t *testing.T) {
		if err := kube.DiscoveryV1().EndpointSlices("default").Delete(ctx, "web-1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, 5*time.Second, "refusing", refuses("10.96.0.50:80"))
		testkit.Eventually(t, 5*time.Second, "unhealthy for load balancers", func() error { return get("http://127.0.0.1:31999", http.StatusServiceUnavailable) })
	})
}

// refusable is a Backend with a Service that the kernel can be made to refuse:
// its source ranges then overlap, which a set of ranges must not.
type refusable struct {
	*nftables.Backend
	service serviceName
	refuse  atomic.Bool
}

func (b *refusable) Apply(ctx context.Context, step backend.Delta) (backend.Report, error) {
	step.Services = slices.Clone(step.Services)
	for i, c := range step.Services {
		if svc := c.New; svc != nil && c.Name == b.service && b.refuse.Load() {
			bad := *svc
			bad.Frontends = slices.Clone(svc.Frontends)
			f := &bad.Frontends[slices.IndexFunc(bad.Frontends, func(f model.Frontend) bool { return f.Kind == model.ClusterIP })]
			f.Restricted = true
			f.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25")}
			step.Services[i].New = &bad
		}
	}
	return b.Backend.Apply(ctx, step)
}

// keepsOldState has the kernel refuse one of two Services that change, and sees
// that everybody is told, that it keeps its old rules while the other gets its
// new ones, and that it heals by itself.
func keepsOldState(t *testing.T, kube kubernetes.Interface, base string, b *refusable) {
	if err := metricAbove("causeway_proxy_in_sync", 0); err != nil {
		t.Fatal(err)
	}
	b.refuse.Store(true)
	endpoints := kube.DiscoveryV1().EndpointSlices("default")
	web, err := endpoints.Get(t.Context(), "web-1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	web.Endpoints[0].Addresses = []string{"10.244.1.5"}
	if _, err := endpoints.Update(t.Context(), web, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	other := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "other"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.60", Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	if _, err := kube.CoreV1().Services("default").Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	testkit.Eventually(t, 10*time.Second, "counted", func() error { return metricAbove("causeway_proxy_rejected_services", 0) })
	if v, err := metric("causeway_proxy_in_sync"); err != nil || v != 0 {
		t.Errorf("metric in_sync is %v (%v), want 0", v, err)
	}
	// The node serves everybody else.
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/livez": 200} {
		if err := get(base+path, want); err != nil {
			t.Error(err)
		}
	}
	for _, want := range []string{`"healthy":true`, `"inSync":false`, `"refused":["default/web"]`} {
		if body, err := body(base + "/healthz"); err != nil || !strings.Contains(body, want) {
			t.Errorf("/healthz says %s (%v), want %s in it", body, err, want)
		}
	}
	testkit.Eventually(t, 10*time.Second, "an event", func() error {
		events, err := kube.EventsV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Reason == "RulesRejected" && e.Regarding.Name == "web" && strings.Contains(e.Note, "source-ranges") {
				return nil
			}
		}
		return fmt.Errorf("none of %d events tells of it", len(events.Items))
	})
	testkit.Eventually(t, 5*time.Second, "the other Service is programmed", refuses("10.96.0.60:80"))
	if err := answers("10.96.0.50:80", "two")(); err != nil {
		t.Errorf("while the kernel refuses: %v", err)
	}

	b.refuse.Store(false)
	testkit.Eventually(t, 40*time.Second, "in sync again", func() error { return metricAbove("causeway_proxy_in_sync", 0) })
	if err := answers("10.96.0.50:80", "one")(); err != nil {
		t.Error(err)
	}
	if err := refuses("10.96.0.60:80")(); err != nil {
		t.Error(err)
	}
}

func mustCreate(t *testing.T, kube kubernetes.Interface) {
	t.Helper()
	ctx := t.Context()
	_, err := kube.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = kube.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.50",
			ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: 31999,
			ExternalIPs: []string{"198.51.100.7", "203.0.113.7"},
			Ports:       []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = kube.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.5"}, NodeName: ptr.To("node-1")}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func hasEvent(kube kubernetes.Interface, reason string) error {
	evs, err := kube.EventsV1().Events(metav1.NamespaceAll).List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, e := range evs.Items {
		if e.Reason == reason {
			return nil
		}
	}
	return fmt.Errorf("no event %s among %d", reason, len(evs.Items))
}

func metricAbove(name string, limit float64) error {
	v, err := metric(name)
	if err == nil && v <= limit {
		err = fmt.Errorf("metric %s is %v, want more than %v", name, v, limit)
	}
	return err
}

// metric gives the first value of that name.
func metric(name string) (float64, error) {
	all, err := body("http://127.0.0.1:10249/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(all) {
		if strings.HasPrefix(line, name+"{") {
			fields := strings.Fields(line)
			return strconv.ParseFloat(fields[len(fields)-1], 64)
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// body gives what is answered, with whatever status.
func body(url string) (string, error) {
	resp, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
