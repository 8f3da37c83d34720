// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers"
	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/test/replica"
)

const (
	shortOperations = 1500
	shortKills      = 2
	longKills       = 5
	slots           = 8 // Services that a worker has at most
)

// tenants are namespaces: two with pools of their own, one without.
var tenants = []struct {
	namespace string
	addresses []v1alpha1.AddressRange
	ports     v1alpha1.PortRange
}{
	{"blue", []v1alpha1.AddressRange{"10.96.64.0/20", "fd00:10:96::4000/116"}, "30000-30999"},
	{"green", []v1alpha1.AddressRange{"10.97.0.0/22", "fd00:10:96::5000/116"}, "31000-31999"},
	{"grey", nil, ""},
}

// Whatever workers do and whoever is killed: no address or port twice, no
// request refused, and in the end the pools count what the Services have.
func TestAllocation(t *testing.T) {
	operations, kills := shortOperations, shortKills
	if text := os.Getenv("SOAK_OPERATIONS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("SOAK_OPERATIONS: %v", err)
		}
		operations, kills = n, longKills
	}
	s := newSoak(t)
	start := time.Now()
	s.run(operations, kills)
	t.Logf("%d operations in %s (%.0f a second), %d kills, %d explicit requests refused because taken, %d served by the API server's own allocator",
		operations, time.Since(start).Round(time.Second), float64(operations)/time.Since(start).Seconds(), kills, s.taken.Load(), s.outside.Load())
	s.checkUnique()
	s.checkPlaced()
	s.checkCounts()
}

// soak is an API server with two replicas and the pools.
type soak struct {
	t        *testing.T
	api      client.Client
	replicas []*replica.Process

	left    atomic.Int64 // operations to do
	taken   atomic.Int64
	outside atomic.Int64

	mu       sync.Mutex
	failures []string
}

func newSoak(t *testing.T) *soak {
	t.Helper()
	ctx := t.Context()
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join("..", "..", "config")
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: time.Minute, Scheme: controllers.NewScheme(),
		CRDDirectoryPaths: []string{filepath.Join(config, "crd", "bases")}, ErrorIfCRDPathMissing: true,
		WebhookInstallOptions: envtest.WebhookInstallOptions{Paths: []string{filepath.Join(config, "webhook", "manifests.yaml")}},
	}
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/112")
	rest, err := env.Start()
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Errorf("stop API server: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	rest.QPS, rest.Burst = 2000, 4000
	s := &soak{t: t}
	if s.api, err = client.New(rest, client.Options{Scheme: controllers.NewScheme()}); err != nil {
		t.Fatal(err)
	}
	s.must(s.api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.SystemNamespace}}))
	s.startReplicas(env)
	s.makePools(ctx)
	return s
}

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *soak) startReplicas(env *envtest.Environment) {
	dir := s.t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	s.must(os.WriteFile(kubeconfig, env.KubeConfig, 0o600))
	hooks := env.WebhookInstallOptions
	s.must(os.WriteFile(filepath.Join(hooks.LocalServingCertDir, "ca.crt"), hooks.LocalServingCAData, 0o600))
	log, err := os.Create(filepath.Join(dir, "replicas.log"))
	s.must(err)
	s.t.Cleanup(func() {
		if s.t.Failed() {
			text, _ := os.ReadFile(log.Name())
			s.t.Logf("the replicas said:\n%s", text[max(0, len(text)-20000):])
		}
	})
	for range 2 {
		port, err := replica.FreePort()
		s.must(err)
		p := &replica.Process{Kubeconfig: kubeconfig, Certs: hooks.LocalServingCertDir, Port: port, Hold: hold, Metrics: "0", Log: log}
		s.must(p.Start())
		s.t.Cleanup(p.Kill)
		s.replicas = append(s.replicas, p)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(hooks.LocalServingHost, strconv.Itoa(hooks.LocalServingPort)))
	s.must(err)
	s.t.Cleanup(func() { _ = listener.Close() })
	go (&replica.Front{Listener: listener, Replicas: s.replicas}).Serve()
}

// makePools creates the namespaces and pools and waits until they are served.
func (s *soak) makePools(ctx context.Context) {
	for _, tenant := range tenants {
		s.must(s.api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace, Labels: map[string]string{"tenant": tenant.namespace}}}))
		if tenant.addresses == nil {
			continue
		}
		selects := &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": tenant.namespace}}
		rest := &metav1.Duration{Duration: 2 * time.Second}
		addresses := &v1alpha1.ClusterIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace},
			Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: tenant.addresses, NamespaceSelector: selects, Quarantine: rest},
		}
		ports := &v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{tenant.ports}, NamespaceSelector: selects, Quarantine: rest},
		}
		// The pools' webhooks are Fail: this waits for a replica to serve.
		s.eventually("create pools", func() error { return client.IgnoreAlreadyExists(s.api.Create(ctx, addresses)) })
		s.eventually("create pools", func() error { return client.IgnoreAlreadyExists(s.api.Create(ctx, ports)) })
	}
	for _, tenant := range tenants[:2] {
		s.eventually("serve pool "+tenant.namespace, func() error {
			var pool v1alpha1.ClusterIPPool
			if err := s.api.Get(ctx, client.ObjectKey{Name: tenant.namespace}, &pool); err != nil {
				return err
			}
			if pool.Status.IPv4 == nil || pool.Status.IPv4.Free < 500 {
				return errors.New("no free addresses yet")
			}
			return nil
		})
	}
	s.eventually("elect who grants", func() error { _, err := s.granter(ctx); return err })
}

// granter returns the replica that holds the allocator's lease.
func (s *soak) granter(ctx context.Context) (*replica.Process, error) {
	var lease coordinationv1.Lease
	if err := s.api.Get(ctx, client.ObjectKey{Namespace: v1alpha1.SystemNamespace, Name: "causeway-allocator"}, &lease); err != nil {
		return nil, err
	}
	for _, r := range s.replicas {
		if strings.HasSuffix(ptr.Deref(lease.Spec.HolderIdentity, ""), "@"+r.Address()) {
			return r, nil
		}
	}
	return nil, errors.New("nobody holds the lease")
}

func (s *soak) eventually(what string, f func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	s.t.Fatalf("%s: %v", what, err)
}

func (s *soak) run(operations, kills int) {
	ctx := s.t.Context()
	s.left.Store(int64(operations))
	var wg sync.WaitGroup
	for i := range 50 {
		w := &worker{soak: s, id: i, rng: rand.New(rand.NewPCG(uint64(i), 42)), has: map[int]string{}}
		wg.Go(func() { w.run(ctx) })
	}
	wg.Go(func() {
		for k := 1; k <= kills; k++ {
			until := int64(operations) * int64(kills+1-k) / int64(kills+1)
			for s.left.Load() > until {
				time.Sleep(20 * time.Millisecond)
			}
			victim, err := s.granter(ctx)
			if err != nil {
				s.fail("kill %d: %v", k, err)
				continue
			}
			victim.Kill()
			time.Sleep(time.Second)
			if err := victim.Start(); err != nil {
				s.fail("start replica again: %v", err)
			}
		}
	})
	wg.Wait()
	for _, f := range s.failures {
		s.t.Error(f)
	}
}

func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) < 20 {
		s.failures = append(s.failures, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}
