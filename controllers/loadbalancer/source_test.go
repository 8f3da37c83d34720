// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/provisioner"
	"github.com/causeway-lb/causeway/internal/provisioner/pool"
	"github.com/causeway-lb/causeway/internal/queue"
)

// sourceSpec is a reconciler of which only the watches are used, with a Service
// "waits" that waits for 192.0.2.1 of pool a.
func sourceSpec(t *testing.T) *ServiceReconciler {
	t.Helper()
	r := &ServiceReconciler{Index: pool.NewIndex(), waiting: newWaiting(), pools: queue.NewDebouncer(0, nil), source: queue.NewSource(nil)}
	p, err := pool.FromPool(&v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"192.0.2.1/32"}}})
	if err != nil {
		t.Fatal(err)
	}
	r.Index.SetPool(p)
	r.waiting.add(types.NamespacedName{Namespace: "ns", Name: "waits"}, &provisioner.AllocationError{
		Families: []corev1.IPFamily{corev1.IPv4Protocol}, Full: []provisioner.FullPool{{Pool: "a", Family: corev1.IPv4Protocol}},
		Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
	})
	return r
}

// namesOf are the Services that are tried.
func namesOf(tried []types.NamespacedName) (names []string) {
	for _, key := range tried {
		if !slices.Contains(names, key.Name) {
			names = append(names, key.Name)
		}
	}
	return names
}

func heldAddress() *v1alpha1.LoadBalancerAddress {
	return &v1alpha1.LoadBalancerAddress{
		ObjectMeta: metav1.ObjectMeta{Name: "192.0.2.1", UID: "1", ResourceVersion: "1"},
		Spec: v1alpha1.LoadBalancerAddressSpec{Address: "192.0.2.1", Pool: "a",
			Services: []v1alpha1.ServiceReference{{Namespace: "ns", Name: "holds", UID: "2"}}},
	}
}

// After a record is deleted by hand its owners are retried first, others after reclaimTime.
// After one that the controller deleted, all are retried immediately.
func TestDeletedRecordRetriesOwnersFirst(t *testing.T) {
	for name, test := range map[string]struct {
		ours bool
		want []string
	}{"by hand": {false, []string{"holds"}}, "ours": {true, []string{"holds", "waits"}}} {
		r, record := sourceSpec(t), heldAddress()
		watch := r.watchAddresses(t.Context())
		watch.Update(nil, record)
		if test.ours {
			r.Index.Delete(netip.MustParseAddr("192.0.2.1"), "1")
		}
		if diff := cmp.Diff(test.want, namesOf(watch.Delete(record))); diff != "" {
			t.Errorf("%s: who is tried (-want +got):\n%s", name, diff)
		}
	}
}

// A Service that may share an address only with the same Pods, or with policy Cluster, is
// retried when the selector or policy of the address's owner changes.
func TestPolicyChangeRetriesWaitingSharers(t *testing.T) {
	r := sourceSpec(t)
	r.watchAddresses(t.Context()).Update(nil, heldAddress())
	before := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "holds"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
		Selector: map[string]string{"app": "holds"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
	}}
	now := before.DeepCopy()
	now.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if diff := cmp.Diff([]string{"waits"}, namesOf(r.watchServices().Update(before, now))); diff != "" {
		t.Errorf("who is tried (-want +got):\n%s", diff)
	}
}
