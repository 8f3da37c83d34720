// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/testkit"
	"github.com/causeway-lb/causeway/test/replica"
)

const (
	creators = 24
	lanPool  = "198.18.0.0/16"
	// lease is how long a killed leader keeps the other one waiting.
	lease = 5 * time.Second
)

// Whoever is killed: no address is given to two Services, no Service's address
// changes, and in the end the records are what the Services have.
func TestAddresses(t *testing.T) {
	operations, kills := size(t, 500)
	s := newBalancing(t)
	watched := s.watch()
	start := time.Now()
	s.run(operations, kills)
	services := s.settled(operations)
	t.Logf("%d Services created and %d kills in %s; %d are left", operations, kills, time.Since(start).Round(time.Second), services)
	s.checkRecords()
	watched()
}

// balancing is a stage with a pool of LoadBalancer addresses. Its API server calls
// no webhooks: they would have to be reached while their servers are killed.
type balancing struct {
	*stage
	mu    sync.Mutex
	alive map[types.UID]bool // Services that are not deleted
}

func newBalancing(t *testing.T) *balancing {
	t.Helper()
	s := &balancing{stage: newStage(t, "10.96.0.0/12"), alive: map[types.UID]bool{}}
	s.must(s.api.Create(t.Context(), &v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{Name: "lan"},
		Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{lanPool}, Quarantine: &metav1.Duration{Duration: 2 * time.Second}},
	}))
	s.startReplicas(&replica.Process{Feature: replica.LoadBalancer, Lease: lease})
	return s
}

// leader returns the replica that leads.
func (s *balancing) leader() (*replica.Process, error) {
	for _, r := range s.replicas {
		resp, err := http.Get("http://" + r.Metrics + "/metrics")
		if err != nil {
			continue // it is being started
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil && strings.Contains(string(text), `leader_election_master_status{name="causeway-controller"} 1`) {
			return r, nil
		}
	}
	return nil, errors.New("nobody leads")
}

// run has workers create and delete Services while leaders are killed.
func (s *balancing) run(operations, kills int) {
	ctx := s.t.Context()
	testkit.Eventually(s.t, time.Minute, "a leader", func() error { _, err := s.leader(); return err })
	s.left.Store(int64(operations))
	var wg sync.WaitGroup
	for i := range creators {
		wg.Go(func() { s.work(ctx, i) })
	}
	wg.Go(func() {
		s.killing(operations, kills, func(int) {
			var victim *replica.Process
			for victim == nil && ctx.Err() == nil {
				victim, _ = s.leader() // after the last kill it takes the other one a moment
				time.Sleep(20 * time.Millisecond)
			}
			if victim == nil {
				return
			}
			victim.Kill()
			if err := victim.Start(); err != nil {
				s.t.Errorf("start replica again: %v", err)
			}
		})
	})
	wg.Wait()
}

// work creates Services, and deletes one of its own now and then.
func (s *balancing) work(ctx context.Context, id int) {
	rng := rand.New(rand.NewPCG(uint64(id), 7))
	var mine []*corev1.Service
	for n := 0; s.left.Add(-1) >= 0 && ctx.Err() == nil; n++ {
		if len(mine) > 0 && rng.IntN(6) == 0 {
			i := rng.IntN(len(mine))
			s.mu.Lock()
			delete(s.alive, mine[i].UID) // before: from here on its address may be another's
			s.mu.Unlock()
			if err := s.api.Delete(ctx, mine[i]); err != nil {
				s.t.Errorf("delete Service %s: %v", mine[i].Name, err)
			}
			mine = append(mine[:i], mine[i+1:]...)
		}
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("w%d-%d", id, n)},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, AllocateLoadBalancerNodePorts: ptr.To(false),
				Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
			},
		}
		if err := s.api.Create(ctx, svc); err != nil {
			s.t.Errorf("create Service %s: %v", svc.Name, err)
			continue
		}
		s.mu.Lock()
		s.alive[svc.UID] = true
		s.mu.Unlock()
		mine = append(mine, svc)
	}
}

// servicesWatch watches Services.
type servicesWatch struct{ api client.WithWatch }

func (w servicesWatch) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return w.api.Watch(ctx, &corev1.ServiceList{}, &client.ListOptions{Raw: &options})
}

// watch follows every version of every Service; the function that it returns
// ends that, and reports how many it has seen. The API server ends the watch of
// a client that does not keep up, which goes on where it was.
func (s *balancing) watch() (stop func()) {
	var list corev1.ServiceList
	s.must(s.api.List(s.t.Context(), &list))
	watch, err := watchtools.NewRetryWatcherWithContext(s.t.Context(), list.ResourceVersion, servicesWatch{s.api})
	s.must(err)
	ended := make(chan int, 1)
	var stopped atomic.Bool
	go func() {
		versions := 0
		has := map[types.UID]string{}    // Service -> address
		holder := map[string]types.UID{} // address -> Service
		for event := range watch.ResultChan() {
			svc, ok := event.Object.(*corev1.Service)
			if !ok {
				if !stopped.Load() {
					s.t.Errorf("watch of Services: %v", event.Object)
				}
				break
			}
			versions++
			s.mu.Lock()
			now := ""
			if len(svc.Status.LoadBalancer.Ingress) > 0 {
				now = svc.Status.LoadBalancer.Ingress[0].IP
			}
			before := has[svc.UID]
			switch {
			case svc.DeletionTimestamp != nil || event.Type == "DELETED":
				now = before // its address may be another's already
				delete(has, svc.UID)
				if holder[before] == svc.UID {
					delete(holder, before)
				}
			case before != "" && now != before:
				s.t.Errorf("Service %s had %s and has %q", svc.Name, before, now)
			}
			if other, taken := holder[now]; now != "" && taken && other != svc.UID && s.alive[other] && s.alive[svc.UID] {
				s.t.Errorf("%s is given to Service %s while another has it", now, svc.Name)
			}
			if now != "" && svc.DeletionTimestamp == nil && event.Type != "DELETED" {
				has[svc.UID], holder[now] = now, svc.UID
			}
			s.mu.Unlock()
		}
		if !stopped.Load() && s.t.Context().Err() == nil {
			s.t.Error("the watch of Services ended")
		}
		ended <- versions
	}()
	return func() {
		stopped.Store(true)
		watch.Stop()
		if versions := <-ended; versions < 1000 {
			s.t.Errorf("only %d versions of Services were seen", versions)
		}
	}
}

// settled waits until every Service has its address and deleted ones are gone,
// and returns how many there are.
func (s *balancing) settled(operations int) int {
	served := 0
	testkit.Eventually(s.t, 2*time.Minute+time.Duration(operations)*20*time.Millisecond, "every Service has an address", func() error {
		var list corev1.ServiceList
		if err := s.api.List(s.t.Context(), &list); err != nil {
			return err
		}
		served = 0
		for _, svc := range list.Items {
			switch {
			case svc.Spec.Type != corev1.ServiceTypeLoadBalancer:
			case svc.DeletionTimestamp != nil:
				return fmt.Errorf("Service %s is still there", svc.Name)
			case len(svc.Status.LoadBalancer.Ingress) != 1:
				return fmt.Errorf("Service %s has %d addresses: %v", svc.Name, len(svc.Status.LoadBalancer.Ingress), svc.Status.Conditions)
			default:
				served++
			}
		}
		return nil
	})
	return served
}

// checkRecords compares records, Services and the pool's counters.
func (s *balancing) checkRecords() {
	testkit.Eventually(s.t, time.Minute, "records are what the Services have", func() error {
		ctx := s.t.Context()
		var services corev1.ServiceList
		var records v1alpha1.LoadBalancerAddressList
		lan := &v1alpha1.LoadBalancerPool{}
		err := errors.Join(s.api.List(ctx, &services), s.api.List(ctx, &records), s.api.Get(ctx, client.ObjectKey{Name: "lan"}, lan))
		if err != nil {
			return err
		}
		want := map[string]string{}
		for _, svc := range services.Items {
			for _, in := range svc.Status.LoadBalancer.Ingress {
				if other, twice := want[in.IP]; twice {
					return fmt.Errorf("Services %s and %s both have %s", other, svc.Name, in.IP)
				}
				want[in.IP] = svc.Name
			}
		}
		for _, r := range records.Items {
			if len(r.Spec.Services) != 1 || want[r.Spec.Address] != r.Spec.Services[0].Name {
				return fmt.Errorf("the record of %s names %v, the Services say %q", r.Spec.Address, r.Spec.Services, want[r.Spec.Address])
			}
			delete(want, r.Spec.Address)
		}
		if len(want) > 0 {
			return fmt.Errorf("%d Services have an address without a record", len(want))
		}
		if u := lan.Status.IPv4; u == nil || u.Assigned != int64(len(records.Items)) || u.Assigned+u.Free != u.Total {
			return fmt.Errorf("the pool counts %+v, there are %d records", u, len(records.Items))
		}
		return nil
	})
}
