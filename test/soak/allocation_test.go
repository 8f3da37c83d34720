// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
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

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/replica"
)

const (
	// hold is how long a grant is kept: long beside a request, short beside a test.
	hold  = 5 * time.Second
	slots = 8 // Services that a worker has at most
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
	operations, kills := size(t, 1500)
	s := newAllocation(t)
	start := time.Now()
	s.run(operations, kills)
	t.Logf("%d operations in %s (%.0f a second), %d kills, %d explicit requests refused because taken, %d served by the API server's own allocator",
		operations, time.Since(start).Round(time.Second), float64(operations)/time.Since(start).Seconds(), kills, s.taken.Load(), s.outside.Load())
	if few := int64(operations / 20); s.outside.Load() > few {
		t.Errorf("the API server allocated by itself %d times, more than a few killed replicas explain (%d)", s.outside.Load(), few)
	}
	s.checkUnique()
	s.checkPlaced()
	s.checkCounts()
	s.checkIPAddresses()
}

// allocation is a stage with pools of ClusterIPs and NodePorts.
type allocation struct {
	*stage
	taken   atomic.Int64
	outside atomic.Int64

	mu       sync.Mutex
	failures []string
}

func newAllocation(t *testing.T) *allocation {
	t.Helper()
	s := &allocation{stage: newStage(t, "10.96.0.0/16,fd00:10:96::/112", filepath.Join("..", "..", "config", "webhook", "manifests.yaml"))}
	s.startReplicas(&replica.Process{Hold: hold})
	s.front()
	s.makePools(t.Context())
	return s
}

// makePools creates the namespaces and pools and waits until they are served.
func (s *allocation) makePools(ctx context.Context) {
	for _, tenant := range tenants {
		s.must(s.api.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace, Labels: map[string]string{"tenant": tenant.namespace}}}))
		if tenant.addresses == nil {
			continue
		}
		selects := &metav1.LabelSelector{MatchLabels: map[string]string{"tenant": tenant.namespace}}
		rest := &metav1.Duration{Duration: 6 * time.Second} // long enough for addresses to be kept from the API server
		addresses := &v1alpha1.ClusterIPPool{
			ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace},
			Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: tenant.addresses, NamespaceSelector: selects, Quarantine: rest},
		}
		ports := &v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{Name: tenant.namespace},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: []v1alpha1.PortRange{tenant.ports}, NamespaceSelector: selects, Quarantine: rest},
		}
		// The pools' webhooks are Fail: this waits for a replica to serve.
		testkit.Eventually(s.t, time.Minute, "create pools", func() error { return client.IgnoreAlreadyExists(s.api.Create(ctx, addresses)) })
		testkit.Eventually(s.t, time.Minute, "create pools", func() error { return client.IgnoreAlreadyExists(s.api.Create(ctx, ports)) })
	}
	for _, tenant := range tenants[:2] {
		testkit.Eventually(s.t, time.Minute, "serve pool "+tenant.namespace, func() error {
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
	testkit.Eventually(s.t, time.Minute, "elect who grants", func() error { _, err := s.granter(ctx); return err })
}

// granter returns the replica that holds the allocator's lease.
func (s *allocation) granter(ctx context.Context) (*replica.Process, error) {
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

func (s *allocation) run(operations, kills int) {
	ctx := s.t.Context()
	s.left.Store(int64(operations))
	var wg sync.WaitGroup
	for i := range 50 {
		w := &worker{allocation: s, id: i, rng: rand.New(rand.NewPCG(uint64(i), 42)), has: map[int]string{}}
		wg.Go(func() { w.run(ctx) })
	}
	wg.Go(func() {
		s.killing(operations, kills, func(n int) {
			victim, err := s.granter(ctx)
			if err != nil {
				s.fail("kill %d: %v", n, err)
				return
			}
			victim.Kill()
			time.Sleep(time.Second)
			if err := victim.Start(); err != nil {
				s.fail("start replica again: %v", err)
			}
		})
	})
	wg.Wait()
	for _, f := range s.failures {
		s.t.Error(f)
	}
}

func (s *allocation) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) < 20 {
		s.failures = append(s.failures, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}
