// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/lab"
	"github.com/causeway-lb/causeway/internal/testkit"
)

func pool(name string, addresses ...v1alpha1.AddressRange) *v1alpha1.LoadBalancerPool {
	return &v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: addresses},
	}
}

// The API server refuses a pool that can't be right, and says what is wrong.
func TestBadPoolsAreRefused(t *testing.T) {
	ctx := need(t)
	for _, test := range []struct {
		name    string
		address v1alpha1.AddressRange
		want    []string
	}{
		{"no address", "not-an-address", []string{"not-an-address"}},
		{"too many octets", "192.0.2.300-192.0.2.310", []string{"192.0.2.300-192.0.2.310"}},
		{"backwards", "198.51.100.20-198.51.100.10", []string{"198.51.100.20-198.51.100.10"}},
		{"two families", "198.51.100.20-2001:db8::1", []string{"198.51.100.20-2001:db8::1"}},
		{"overlap", "192.0.2.240-192.0.2.255", []string{"192.0.2.240-192.0.2.250", "lan"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := api.Create(ctx, pool("bad", test.address))
			if err == nil {
				_ = api.Delete(ctx, pool("bad"))
				t.Fatalf("a pool of %s was accepted", test.address)
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the message doesn't name %q: %v", part, err)
				}
			}
		})
	}
}

// A Service that can't have what it asks for stays pending, with a condition
// and an event that say why; others go on.
func TestUnservableServicesStayPending(t *testing.T) {
	ctx := need(t)
	outside := create(t, ctx, "outside-all-pools", asks("198.51.100.77"))
	refused(t, ctx, outside, "198.51.100.77")

	small := pool("small", "192.0.2.180/32")
	small.Spec.AutoAssign = ptr.To(false)
	small.Spec.Quarantine = &metav1.Duration{} // none
	if err := api.Create(ctx, small); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deletePool(t, small) })
	inSmall := func(s *corev1.Service) { s.Annotations = map[string]string{v1alpha1.PoolAnnotation: "small"} }
	first := create(t, ctx, "first-of-small", inSmall)
	if got := ready(t, ctx, first); got[0] != netip.MustParseAddr("192.0.2.180") {
		t.Errorf("address %s, want the pool's only one", got[0])
	}
	second := create(t, ctx, "second-of-small", inSmall)
	refused(t, ctx, second, "small")

	fine := create(t, ctx, "fine")
	answering(t, ctx, lab.Client, frontend(ready(t, ctx, fine)[0], 80), all())

	// What was in the way goes, and the one that waited is served.
	if err := api.Delete(ctx, first); err != nil {
		t.Fatal(err)
	}
	ready(t, ctx, second)
}

// refused waits for a condition and an event that both name the cause, and
// asserts that there is no address.
func refused(t *testing.T, ctx context.Context, service *corev1.Service, cause string) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "condition of "+service.Name, func() error {
		if err := api.Get(ctx, client.ObjectKeyFromObject(service), service); err != nil {
			return err
		}
		for _, c := range service.Status.Conditions {
			if c.Type == v1alpha1.ServiceAllocated && c.Status == metav1.ConditionFalse && strings.Contains(c.Message, cause) {
				return nil
			}
		}
		return fmt.Errorf("conditions: %v", service.Status.Conditions)
	})
	testkit.Eventually(t, 10*time.Second, "event of "+service.Name, func() error {
		events := &eventsv1.EventList{}
		if err := api.List(ctx, events, client.InNamespace(service.Namespace)); err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.Regarding.UID == service.UID && e.Type == corev1.EventTypeWarning && strings.Contains(e.Note, cause) {
				return nil
			}
		}
		return fmt.Errorf("none of %d events", len(events.Items))
	})
	if len(service.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("%s has an address: %v", service.Name, service.Status.LoadBalancer.Ingress)
	}
}

// deletePool waits for the addresses to be let go of.
func deletePool(t *testing.T, p *v1alpha1.LoadBalancerPool) {
	ctx, cancel := contextFor(30 * time.Second)
	defer cancel()
	testkit.Eventually(t, 20*time.Second, "deletion of pool "+p.Name, func() error {
		return client.IgnoreNotFound(api.Delete(ctx, p))
	})
}

// recordName is an address record's name: the address in full, with dashes.
func recordName(address netip.Addr) string {
	return strings.ReplaceAll(address.StringExpanded(), ":", "-")
}

// contextFor is for what outlives a test's own context.
func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// sliceOf makes endpoints for a Service without selector, at addresses that
// nobody has.
func sliceOf(service *corev1.Service, endpoints int) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Namespace, Name: service.Name,
			Labels: map[string]string{discoveryv1.LabelServiceName: service.Name, discoveryv1.LabelManagedBy: "e2e"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(38001)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for i := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.200.%d", i+1)}})
	}
	return slice
}

func deleteMany(t *testing.T, namespace *corev1.Namespace) {
	ctx, cancel := contextFor(time.Minute)
	defer cancel()
	if err := api.DeleteAllOf(ctx, &discoveryv1.EndpointSlice{}, client.InNamespace(namespace.Name)); err != nil {
		t.Error(err)
	}
	services := &corev1.ServiceList{}
	if err := api.List(ctx, services, client.InNamespace(namespace.Name)); err != nil {
		t.Error(err)
	}
	for i := range services.Items {
		if err := api.Delete(ctx, &services.Items[i]); err != nil {
			t.Error(err)
		}
	}
	if err := api.Delete(ctx, namespace); err != nil {
		t.Error(err)
	}
}
