// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
)

// feedSpec is a reconciler of which only the feeds are used, with a Service
// "waits" that waits for 192.0.2.1 of pool a.
func feedSpec(t *testing.T) (r *LoadBalancerReconciler, drain func() []string, q queue) {
	t.Helper()
	r = &LoadBalancerReconciler{Index: pool.NewIndex(), waiting: newWaiting(), touch: func(...string) {}}
	p, err := pool.FromPool(&v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"192.0.2.1/32"}}})
	if err != nil {
		t.Fatal(err)
	}
	r.Index.SetPool(p)
	r.waiting.add(types.NamespacedName{Namespace: "ns", Name: "waits"}, &provisioner.Refused{
		Families: []corev1.IPFamily{corev1.IPv4Protocol}, Full: []provisioner.FullPool{{Pool: "a", Family: corev1.IPv4Protocol}},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	})
	q = workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	t.Cleanup(q.ShutDown)
	return r, func() []string {
		var names []string
		for q.Len() > 0 {
			request, _ := q.Get()
			q.Done(request)
			names = append(names, request.Name)
		}
		return names
	}, q
}

func heldAddress() *v1alpha1.LoadBalancerAddress {
	return &v1alpha1.LoadBalancerAddress{
		ObjectMeta: metav1.ObjectMeta{Name: "192.0.2.1", UID: "1", ResourceVersion: "1"},
		Spec: v1alpha1.LoadBalancerAddressSpec{Address: "192.0.2.1", Pool: "a",
			Services: []v1alpha1.ServiceReference{{Namespace: "ns", Name: "holds", UID: "2"}}},
	}
}

// A record that somebody deletes by hand is its Service's to make again: nobody
// else is told at once that the address is free. One that we deleted is free.
func TestDeletedRecordIsFreeOnlyIfWeDeletedIt(t *testing.T) {
	for name, test := range map[string]struct {
		ours bool
		want []string
	}{"by hand": {false, []string{"holds"}}, "ours": {true, []string{"holds", "waits"}}} {
		r, drain, q := feedSpec(t)
		feed, record := r.addressFeed(), heldAddress()
		feed.Create(t.Context(), event.CreateEvent{Object: record}, q)
		drain()
		if test.ours {
			r.Index.Delete(netip.MustParseAddr("192.0.2.1"), "1")
		}
		feed.Delete(t.Context(), event.DeleteEvent{Object: record}, q)
		if diff := cmp.Diff(test.want, drain()); diff != "" {
			t.Errorf("%s: who is tried (-want +got):\n%s", name, diff)
		}
	}
}

// Whoever may share an address only with the same Pods, or with policy Cluster,
// is tried when the holder's selector or policy changes.
func TestPolicyOfTheHolderConcernsWhoWantsToShare(t *testing.T) {
	r, drain, q := feedSpec(t)
	r.addressFeed().Create(t.Context(), event.CreateEvent{Object: heldAddress()}, q)
	drain()
	before := newService("ns", "holds", func(svc *corev1.Service) {
		svc.Spec.Type, svc.Spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	now := before.DeepCopy()
	now.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	r.serviceFeed().Update(t.Context(), event.UpdateEvent{ObjectOld: before, ObjectNew: now}, q)
	if diff := cmp.Diff([]string{"waits"}, drain()); diff != "" {
		t.Errorf("who is tried (-want +got):\n%s", diff)
	}
}
