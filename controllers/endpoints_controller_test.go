// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/endpoints"
	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// describeEndpoints returns the addresses of an Endpoints object, sorted, those
// that are not ready with a "!".
func describeEndpoints(ctx context.Context, service *corev1.Service) func(Gomega) []string {
	return func(g Gomega) []string {
		var endpoints corev1.Endpoints //nolint:staticcheck // the deprecated type is the point
		g.Expect(client.IgnoreNotFound(k8sClient.Get(ctx, client.ObjectKeyFromObject(service), &endpoints))).To(Succeed())
		var lines []string
		for _, subset := range endpoints.Subsets {
			for _, address := range subset.Addresses {
				lines = append(lines, fmt.Sprintf("%s:%d", address.IP, subset.Ports[0].Port))
			}
			for _, address := range subset.NotReadyAddresses {
				lines = append(lines, fmt.Sprintf("!%s:%d", address.IP, subset.Ports[0].Port))
			}
		}
		slices.Sort(lines)
		return lines
	}
}

// otherMirror makes a slice as kube-controller-manager does from an Endpoints
// object.
func otherMirror(ctx context.Context, service *corev1.Service, addresses ...string) *discoveryv1.EndpointSlice {
	GinkgoHelper()
	slice := otherSlice(ctx, service, addresses...)
	slice.Labels[discoveryv1.LabelManagedBy] = endpointslice.KubeManagedByMirror
	Expect(k8sClient.Update(ctx, slice)).To(Succeed())
	return slice
}

var _ = Describe("Endpoints", func() {
	var namespace string
	BeforeEach(func(ctx SpecContext) { namespace = newNamespace(ctx) })

	It("follow the Pods and go with the Service", func(ctx SpecContext) {
		node := newNode(ctx, "zone-a")
		service := newService(namespace, "web", nil)
		create(ctx, service)
		pod := newPod(ctx, namespace, "web-1", "web", node, false, "10.244.7.1")
		Eventually(describeEndpoints(ctx, service)).Should(ConsistOf("!10.244.7.1:80"))
		runPod(ctx, pod, true)
		Eventually(describeEndpoints(ctx, service)).Should(ConsistOf("10.244.7.1:80"))

		Expect(k8sClient.Delete(ctx, service)).To(Succeed())
		Eventually(func() error {
			var endpoints corev1.Endpoints //nolint:staticcheck
			return k8sClient.Get(ctx, client.ObjectKeyFromObject(service), &endpoints)
		}).Should(MatchError(ContainSubstring("not found")))
	})

	It("that users write are mirrored into slices", func(ctx SpecContext) {
		service := newService(namespace, "external", func(s *corev1.Service) { s.Spec.Selector = nil })
		create(ctx, service)
		endpoints := &corev1.Endpoints{ //nolint:staticcheck
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "external", Labels: map[string]string{"team": "blue"}},
			Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck
				Addresses:         []corev1.EndpointAddress{{IP: "198.51.100.1"}, {IP: "2001:db8::1"}},
				NotReadyAddresses: []corev1.EndpointAddress{{IP: "198.51.100.2"}},
				Ports:             []corev1.EndpointPort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}},
			}},
		}
		create(ctx, endpoints)
		Eventually(describe(ctx, service)).Should(ConsistOf("198.51.100.1:8080 ready", "198.51.100.2:8080", "2001:db8::1:8080 ready"))
		Expect(managers(ctx, service)()).To(ConsistOf(endpointslice.ManagedByMirror, endpointslice.ManagedByMirror))
		Expect(slicesOf(ctx, service)[0].Labels).To(HaveKeyWithValue("team", "blue"))

		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(endpoints), endpoints)).To(Succeed())
		endpoints.Subsets[0].Addresses = endpoints.Subsets[0].Addresses[:1]
		Expect(k8sClient.Update(ctx, endpoints)).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("198.51.100.1:8080 ready", "198.51.100.2:8080"))

		endpoints.Labels[discoveryv1.LabelSkipMirror] = "true"
		Expect(k8sClient.Update(ctx, endpoints)).To(Succeed())
		Eventually(managers(ctx, service)).Should(BeEmpty())
	})

	It("that are mirrored are handed back and taken over in place", func(ctx SpecContext) {
		service := newService(namespace, "external", func(s *corev1.Service) { s.Spec.Selector = nil })
		create(ctx, service)
		create(ctx, &corev1.Endpoints{ //nolint:staticcheck
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "external"},
			Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck
				Addresses: []corev1.EndpointAddress{{IP: "198.51.100.1"}},
				Ports:     []corev1.EndpointPort{{Name: "http", Port: 8080, Protocol: corev1.ProtocolTCP}},
			}},
		})
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedByMirror))
		before := slicesOf(ctx, service)[0].UID
		for _, step := range []struct {
			mode            endpoints.Mode
			manager, charge string
		}{
			{endpoints.HandBack, endpointslice.KubeManagedByMirror, "False/HandedBack"},
			{endpoints.TakeOver, endpointslice.ManagedByMirror, "True/Managed"},
		} {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.EndpointSlicesAnnotation, step.mode)
			Expect(k8sClient.Patch(ctx, service.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)))).To(Succeed())
			Eventually(managers(ctx, service)).Should(ConsistOf(step.manager))
			Eventually(chargeOf(ctx, service)).Should(Equal(step.charge))
			Expect(slicesOf(ctx, service)[0].UID).To(Equal(before))
			Expect(describe(ctx, service)()).To(ConsistOf("198.51.100.1:8080 ready"))
		}
		// Another controller that makes slices all the same is alive, and not fought.
		otherMirror(ctx, service, "198.51.100.1")
		Eventually(chargeOf(ctx, service)).Should(Equal("True/OwnershipConflict"))
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedByMirror, endpointslice.KubeManagedByMirror))
	})

	It("that are mirrored by another are left to it once its slices cover ours", func(ctx SpecContext) {
		service := newService(namespace, "external", func(s *corev1.Service) { s.Spec.Selector = nil })
		create(ctx, service)
		endpoints := &corev1.Endpoints{ //nolint:staticcheck
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "external"},
			Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck
				Addresses: []corev1.EndpointAddress{{IP: "198.51.100.1"}},
				Ports:     []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
			}},
		}
		create(ctx, endpoints)
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedByMirror))
		Expect(chargeOf(ctx, service)(Default)).To(BeEmpty(), "there is nothing to say")
		other := otherMirror(ctx, service)
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedByMirror, endpointslice.KubeManagedByMirror))
		other.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"198.51.100.1"}}}
		Expect(k8sClient.Update(ctx, other)).To(Succeed())
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.KubeManagedByMirror))
		Eventually(chargeOf(ctx, service)).Should(Equal("False/Standby"))

		// Without the object nobody is in charge.
		Expect(k8sClient.Delete(ctx, endpoints)).To(Succeed())
		Eventually(chargeOf(ctx, service)).Should(BeEmpty())
	})

	// selectorless takes the Service's selector away.
	selectorless := func(ctx context.Context, service *corev1.Service, change func(*corev1.Service)) {
		GinkgoHelper()
		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(service), service)).To(Succeed())
		service.Spec.Selector = nil
		if change != nil {
			change(service)
		}
		Expect(k8sClient.Update(ctx, service)).To(Succeed())
	}
	object := func(ctx context.Context, service *corev1.Service) func() error {
		return func() error {
			return k8sClient.Get(ctx, client.ObjectKeyFromObject(service), &corev1.Endpoints{}) //nolint:staticcheck
		}
	}

	It("of a Service that loses its selector go, and are not mirrored", func(ctx SpecContext) {
		service := newService(namespace, "web", nil)
		create(ctx, service)
		pod := newPod(ctx, namespace, "web-1", "web", newNode(ctx, "zone-a"), true, "10.244.8.1")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.8.1:80 ready serving"))
		Eventually(describeEndpoints(ctx, service)).Should(ConsistOf("10.244.8.1:80"))

		selectorless(ctx, service, nil)
		own := handMade(service, "198.51.100.7")
		create(ctx, own)
		Expect(k8sClient.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("198.51.100.7:80 ready"))
		Eventually(object(ctx, service)).Should(MatchError(ContainSubstring("not found")))
		Consistently(describe(ctx, service)).Should(ConsistOf("198.51.100.7:80 ready"))
		Eventually(eventsOn(ctx, service)).Should(ContainElement(ContainSubstring("EndpointSlicesRemoved")))
	})

	It("of a Service that becomes an external name and comes back without selector go", func(ctx SpecContext) {
		service := newService(namespace, "web", nil)
		create(ctx, service)
		newPod(ctx, namespace, "web-1", "web", newNode(ctx, "zone-a"), true, "10.244.8.2")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.8.2:80 ready serving"))
		Eventually(describeEndpoints(ctx, service)).Should(ConsistOf("10.244.8.2:80"))
		selectorless(ctx, service, func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "elsewhere.example"
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil
			s.Spec.IPFamilies, s.Spec.IPFamilyPolicy = nil, nil
		})
		Eventually(object(ctx, service)).Should(MatchError(ContainSubstring("not found")))
		selectorless(ctx, service, func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeClusterIP, "" })
		Consistently(describe(ctx, service)).Should(BeEmpty())
	})

	// generated makes an Endpoints object as kube-controller-manager does, for a
	// Service without a selector.
	generated := func(ctx context.Context, name string, mode endpoints.Mode, change func(*corev1.Endpoints)) *corev1.Service { //nolint:staticcheck
		service := newService(namespace, name, func(s *corev1.Service) {
			s.Spec.Selector = nil
			s.Annotations = map[string]string{v1alpha1.EndpointSlicesAnnotation: string(mode)}
		})
		create(ctx, service)
		endpoints := &corev1.Endpoints{ //nolint:staticcheck
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Subsets: []corev1.EndpointSubset{{ //nolint:staticcheck
				Addresses: []corev1.EndpointAddress{{IP: "10.244.8.3", TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: "gone"}}},
				Ports:     []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
			}},
		}
		change(endpoints)
		create(ctx, endpoints)
		return service
	}
	labelled := func(e *corev1.Endpoints) { //nolint:staticcheck
		e.Labels = map[string]string{endpointslice.LegacyManagedByLabel: endpointslice.LegacyKubeManagedBy}
	}
	annotated := func(e *corev1.Endpoints) { //nolint:staticcheck
		e.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: "2024-01-01T00:00:00Z"}
	}

	DescribeTable("that kube-controller-manager made before the selector went are not mirrored",
		func(ctx SpecContext, mode endpoints.Mode, change func(*corev1.Endpoints), goes bool) { //nolint:staticcheck
			service := generated(ctx, "left", mode, change)
			if goes {
				Eventually(object(ctx, service)).Should(MatchError(ContainSubstring("not found")))
			} else {
				Eventually(eventsOn(ctx, service)).Should(ContainElement(ContainSubstring(endpointslice.ReasonNotMirrored)))
				Expect(object(ctx, service)()).To(Succeed())
			}
			Consistently(describe(ctx, service)).Should(BeEmpty())
		},
		Entry("taken over", endpoints.TakeOver, labelled, true),
		Entry("not taken over", endpoints.Auto, labelled, false),
		Entry("of a version without the label, taken over", endpoints.TakeOver, annotated, true),
		Entry("of a version without the label, not taken over", endpoints.Auto, annotated, false),
		Entry("taken over, with an address that somebody wrote", endpoints.TakeOver, func(e *corev1.Endpoints) { //nolint:staticcheck
			labelled(e)
			e.Subsets[0].Addresses[0].TargetRef = nil
		}, false),
	)
})

// handMade is a slice as users write them.
func handMade(service *corev1.Service, address string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Namespace, GenerateName: service.Name + "-own-",
			Labels: map[string]string{discoveryv1.LabelServiceName: service.Name},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}},
	}
}
