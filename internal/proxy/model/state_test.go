// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func TestIncrementalEqualsFull(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := modeltest.New(seed)
			state := model.NewState(w.Node)
			seen := map[types.NamespacedName]*model.Service{}
			for step := range 300 {
				name := w.Change()
				var changes []model.Change
				if in, ok := w.Input(name); ok {
					changes = state.Set(in)
				} else {
					changes = state.Delete(name)
				}
				for _, c := range changes {
					if !seen[c.Name].Equal(c.Old) {
						t.Fatalf("step %d: change of %s does not begin where the last one ended", step, c.Name)
					}
					seen[c.Name] = c.New
				}
				if step%10 != 9 {
					continue
				}
				full, problems := model.Compute(w.Snapshot())
				if diff := cmp.Diff(full, state.Desired(), compare); diff != "" {
					t.Fatalf("step %d: incremental differs (-full +incremental):\n%s", step, diff)
				}
				for n, svc := range full.Services {
					if !svc.Equal(seen[n]) {
						t.Fatalf("step %d: the changes do not lead to %s", step, n)
					}
				}
				var got []model.Problem
				for _, n := range w.Names() {
					got = append(got, state.Problems(n)...)
				}
				if diff := cmp.Diff(problems, got, compare, cmpopts.SortSlices(func(a, b model.Problem) bool { return fmt.Sprint(a) < fmt.Sprint(b) })); diff != "" {
					t.Fatalf("step %d: problems differ (-full +incremental):\n%s", step, diff)
				}
			}
		})
	}
}

func TestOrderOfInputIsIrrelevantAndInputsAreNotModified(t *testing.T) {
	w := modeltest.New(99)
	for range 200 {
		w.Change()
	}
	before := w.Snapshot()
	kept := make([]model.Input, len(before.Services))
	for i, in := range before.Services {
		kept[i].Service = in.Service.DeepCopy()
		for _, sl := range in.Slices {
			kept[i].Slices = append(kept[i].Slices, sl.DeepCopy())
		}
	}
	first, _ := model.Compute(before)
	for range 5 {
		again, _ := model.Compute(w.Snapshot())
		if diff := cmp.Diff(first, again, compare); diff != "" {
			t.Fatalf("another order gives another result (-first +again):\n%s", diff)
		}
	}
	if diff := cmp.Diff(kept, before.Services); diff != "" {
		t.Errorf("Compute modified its input (-before +after):\n%s", diff)
	}
}

func lbService(name, ip string, port int32, age time.Duration) model.Input {
	return model.Input{Service: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0).Add(-age))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0." + name, Ports: []corev1.ServicePort{{Port: port}},
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: ip}}}},
	}}
}

func owner(s *model.State, addr string, port uint16) []string {
	key := model.Key{Addr: netip.MustParseAddr(addr), Port: port, Protocol: model.TCP}
	var owners []string
	for name, svc := range s.Desired().Services {
		for _, f := range svc.Frontends {
			if f.Key == key {
				owners = append(owners, name.Name)
			}
		}
	}
	return owners
}

func TestConflictOverFrontend(t *testing.T) {
	s := model.NewState(model.Node{})
	s.Set(lbService("1", "192.0.2.200", 80, time.Hour))
	older := lbService("2", "192.0.2.200", 80, 2*time.Hour)
	if got := s.Set(older); len(got) != 2 {
		t.Errorf("an older Service changes %d Services, want itself and the loser", len(got))
	}
	if got := owner(s, "192.0.2.200", 80); !cmp.Equal(got, []string{"2"}) {
		t.Errorf("owner is %v, want the older Service 2", got)
	}
	if ps := s.Problems(types.NamespacedName{Namespace: "default", Name: "1"}); len(ps) != 1 || ps[0].Reason != "FrontendConflict" {
		t.Errorf("problems of the loser: %v", ps)
	}
	s.Set(lbService("3", "192.0.2.200", 81, 0))
	if got := owner(s, "192.0.2.200", 81); !cmp.Equal(got, []string{"3"}) {
		t.Errorf("another port of the address belongs to %v, want 3", got)
	}
	s.Delete(types.NamespacedName{Namespace: "default", Name: "2"})
	if got := owner(s, "192.0.2.200", 80); !cmp.Equal(got, []string{"1"}) {
		t.Errorf("after the owner went: %v, want 1", got)
	}
	if ps := s.Problems(types.NamespacedName{Namespace: "default", Name: "1"}); len(ps) != 0 {
		t.Errorf("problems remain: %v", ps)
	}
}
