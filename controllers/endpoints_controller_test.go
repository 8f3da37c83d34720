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
			mode    EndpointSliceMode
			manager string
		}{
			{EndpointSlicesHandBack, endpointslice.RivalManagedByMirror},
			{EndpointSlicesTakeOver, endpointslice.ManagedByMirror},
		} {
			patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.EndpointSlicesAnnotation, step.mode)
			Expect(k8sClient.Patch(ctx, service.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)))).To(Succeed())
			Eventually(managers(ctx, service)).Should(ConsistOf(step.manager))
			Expect(slicesOf(ctx, service)[0].UID).To(Equal(before))
			Expect(describe(ctx, service)()).To(ConsistOf("198.51.100.1:8080 ready"))
		}
	})

	It("of a Service that loses its selector become mirrored in place", func(ctx SpecContext) {
		service := newService(namespace, "web", nil)
		create(ctx, service)
		newPod(ctx, namespace, "web-1", "web", newNode(ctx, "zone-a"), true, "10.244.8.1")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.8.1:80 ready serving"))
		Eventually(describeEndpoints(ctx, service)).Should(ConsistOf("10.244.8.1:80"))
		before := slicesOf(ctx, service)[0].UID

		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(service), service)).To(Succeed())
		service.Spec.Selector = nil
		Expect(k8sClient.Update(ctx, service)).To(Succeed())
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedByMirror))
		Expect(describe(ctx, service)()).To(ConsistOf("10.244.8.1:80 ready"))
		Expect(slicesOf(ctx, service)[0].UID).To(Equal(before))
	})
})
