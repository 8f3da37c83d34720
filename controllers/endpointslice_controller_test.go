// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/controllers/endpoints"
	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// newNode makes a Node in a zone and returns its name.
func newNode(ctx context.Context, zone string) string {
	GinkgoHelper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name: "node-" + rand8(), Labels: map[string]string{corev1.LabelTopologyZone: zone},
	}}
	create(ctx, node)
	return node.Name
}

// newPod makes a running Pod with the label app on a Node, ready or not.
func newPod(ctx context.Context, namespace, name, app, node string, ready bool, addresses ...string) *corev1.Pod {
	GinkgoHelper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			NodeName: node,
			Containers: []corev1.Container{{
				Name: "main", Image: "example.com/none",
				Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
			}},
		},
	}
	Expect(k8sClient.Create(ctx, pod)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(k8sClient.Delete(ctx, pod, client.GracePeriodSeconds(0)))).To(Succeed())
	})
	runPod(ctx, pod, ready, addresses...)
	return pod
}

// runPod writes the status that a kubelet would write.
func runPod(ctx context.Context, pod *corev1.Pod, ready bool, addresses ...string) {
	GinkgoHelper()
	pod.Status.Phase = corev1.PodRunning
	if len(addresses) > 0 {
		pod.Status.PodIP, pod.Status.PodIPs = addresses[0], nil
		for _, address := range addresses {
			pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: address})
		}
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	Expect(k8sClient.Status().Update(ctx, pod)).To(Succeed())
}

// slicesOf lists the slices of a Service.
func slicesOf(ctx context.Context, service *corev1.Service) []discoveryv1.EndpointSlice {
	GinkgoHelper()
	var list discoveryv1.EndpointSliceList
	Expect(k8sClient.List(ctx, &list, client.InNamespace(service.Namespace),
		client.MatchingLabels{discoveryv1.LabelServiceName: service.Name})).To(Succeed())
	return list.Items
}

// describe returns the endpoints of a Service's slices as sorted lines such as
// "10.244.1.1:8080 ready serving".
func describe(ctx context.Context, service *corev1.Service) func() []string {
	return func() []string {
		lines := []string{}
		for _, slice := range slicesOf(ctx, service) {
			for _, endpoint := range slice.Endpoints {
				line := endpoint.Addresses[0]
				for _, port := range slice.Ports {
					line += fmt.Sprintf(":%d", *port.Port)
				}
				lines = append(lines, line+conditionWords(endpoint.Conditions))
			}
		}
		slices.Sort(lines)
		return lines
	}
}

func conditionWords(conditions discoveryv1.EndpointConditions) string {
	var words []string
	for word, condition := range map[string]*bool{
		"ready": conditions.Ready, "serving": conditions.Serving, "terminating": conditions.Terminating,
	} {
		if condition != nil && *condition {
			words = append(words, " "+word)
		}
	}
	slices.Sort(words)
	return strings.Join(words, "")
}

// managers returns who manages the slices of a Service, sorted.
func managers(ctx context.Context, service *corev1.Service) func() []string {
	return func() []string {
		var list []string
		for _, slice := range slicesOf(ctx, service) {
			list = append(list, endpointslice.Manager(service, &slice))
		}
		slices.Sort(list)
		return list
	}
}

var _ = Describe("EndpointSlices", func() {
	var namespace string
	BeforeEach(func(ctx SpecContext) { namespace = newNamespace(ctx) })

	It("follow the Pods that the selector matches", func(ctx SpecContext) {
		node := newNode(ctx, "zone-a")
		service := newService(namespace, "web", func(s *corev1.Service) {
			s.Labels = map[string]string{"team": "blue"}
			s.Spec.Ports[0].TargetPort = intstr.FromString("web")
		})
		create(ctx, service)
		Eventually(describe(ctx, service)).Should(BeEmpty())
		Eventually(func() int { return len(slicesOf(ctx, service)) }).Should(Equal(1), "an empty slice says: none")

		pod := newPod(ctx, namespace, "web-1", "web", node, false, "10.244.1.1")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.1.1:8080"))
		runPod(ctx, pod, true)
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.1.1:8080 ready serving"))
		newPod(ctx, namespace, "other-1", "other", node, true, "10.244.1.9")
		newPod(ctx, namespace, "web-2", "web", node, true, "10.244.1.2")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.1.1:8080 ready serving", "10.244.1.2:8080 ready serving"))

		slice := slicesOf(ctx, service)[0]
		Expect(slice.Labels).To(Equal(map[string]string{
			"team": "blue", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: v1alpha1.EndpointSliceManagedBy,
			v1alpha1.EndpointSliceKeeperLabel: v1alpha1.EndpointSliceKeeper,
		}))
		Expect(slice.OwnerReferences).To(HaveLen(1))
		Expect(slice.OwnerReferences[0].UID).To(Equal(service.UID))
		Expect(*slice.Endpoints[0].Zone).To(Equal("zone-a"))
		Expect(*slice.Endpoints[0].NodeName).To(Equal(node))
		Expect(slice.Endpoints[0].TargetRef.UID).To(Equal(pod.UID))
		Expect(slice.Annotations).To(HaveKey(corev1.EndpointsLastChangeTriggerTime))

		Expect(k8sClient.Delete(ctx, pod)).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.1.1:8080 serving terminating", "10.244.1.2:8080 ready serving"))
		Expect(k8sClient.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.1.2:8080 ready serving"))
	})

	It("have both families of a dual-stack Service", func(ctx SpecContext) {
		node := newNode(ctx, "zone-a")
		service := newService(namespace, "dual", func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		})
		create(ctx, service)
		newPod(ctx, namespace, "dual-1", "dual", node, true, "10.244.2.1", "fd00:10:244:2::1")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.2.1:80 ready serving", "fd00:10:244:2::1:80 ready serving"))
	})

	It("come back when somebody deletes or spoils them", func(ctx SpecContext) {
		node := newNode(ctx, "zone-a")
		service := newService(namespace, "web", nil)
		create(ctx, service)
		newPod(ctx, namespace, "web-1", "web", node, true, "10.244.3.1")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.3.1:80 ready serving"))

		slice := slicesOf(ctx, service)[0]
		Expect(k8sClient.Delete(ctx, &slice)).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.3.1:80 ready serving"))

		slice = slicesOf(ctx, service)[0]
		slice.Endpoints[0].Addresses[0] = "10.244.3.99"
		Expect(k8sClient.Update(ctx, &slice)).To(Succeed())
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.3.1:80 ready serving"))
	})

	It("leave out Pods on Nodes that do not exist, and say so, until they do", func(ctx SpecContext) {
		service := newService(namespace, "web", nil)
		create(ctx, service)
		name := "late-" + rand8()
		newPod(ctx, namespace, "web-1", "web", name, true, "10.244.4.1")
		Eventually(eventsOn(ctx, service)).Should(ContainElement(ContainSubstring(endpointslice.ReasonNodeUnknown)))
		Expect(describe(ctx, service)()).To(BeEmpty())
		create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.4.1:80 ready serving"))
	})

	It("hold at most a hundred endpoints", func(ctx SpecContext) {
		node := newNode(ctx, "zone-a")
		service := newService(namespace, "many", nil)
		for i := range 150 {
			newPod(ctx, namespace, fmt.Sprintf("many-%03d", i), "many", node, true, fmt.Sprintf("10.244.5.%d", i+1))
		}
		create(ctx, service)
		Eventually(func() []int {
			sizes := []int{}
			for _, slice := range slicesOf(ctx, service) {
				sizes = append(sizes, len(slice.Endpoints))
			}
			slices.Sort(sizes)
			return sizes
		}).Should(Equal([]int{50, 100}))
	}, SpecTimeout(settleTime*3))

	It("are not made for a Service without a selector", func(ctx SpecContext) {
		service := newService(namespace, "manual", func(s *corev1.Service) { s.Spec.Selector = nil })
		create(ctx, service)
		Consistently(func() int { return len(slicesOf(ctx, service)) }).Should(BeZero())
	})

	It("of a family that the Service lacks are reported, whoever wrote them", func(ctx SpecContext) {
		byHand := newService(namespace, "by-hand", func(s *corev1.Service) { s.Spec.Selector = nil })
		selected := newService(namespace, "selected", nil)
		for _, service := range []*corev1.Service{byHand, selected} {
			create(ctx, service)
			create(ctx, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: namespace, Name: service.Name + "-six", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name},
				},
				AddressType: discoveryv1.AddressTypeIPv6,
				Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"2001:db8::9"}}},
			})
			Eventually(eventsOn(ctx, service)).Should(ContainElement(And(
				ContainSubstring(endpointslice.ReasonFamilyMismatch), ContainSubstring(service.Name+"-six"))))
		}
		newPod(ctx, namespace, "selected-1", "selected", newNode(ctx, "zone-a"), true, "10.244.8.1")
		Eventually(describe(ctx, selected)).Should(ContainElement("10.244.8.1:80 ready serving"))
	})

	It("say which ready Pods have no address of a family", func(ctx SpecContext) {
		service := newService(namespace, "dual", func(s *corev1.Service) {
			s.Spec.IPFamilyPolicy = new(corev1.IPFamilyPolicyRequireDualStack)
		})
		create(ctx, service)
		node := newNode(ctx, "zone-a")
		newPod(ctx, namespace, "dual-1", "dual", node, true)
		newPod(ctx, namespace, "dual-2", "dual", node, true, "10.244.8.2", "fd00:10:244:8::2")
		Eventually(eventsOn(ctx, service)).Should(ContainElement(And(
			ContainSubstring(endpointslice.ReasonAddressMissing), ContainSubstring("dual-1"))))
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.8.2:80 ready serving", "fd00:10:244:8::2:80 ready serving"))
	})
})

// otherSlice makes a slice as kube-controller-manager does.
func otherSlice(ctx context.Context, service *corev1.Service, addresses ...string) *discoveryv1.EndpointSlice {
	GinkgoHelper()
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: service.Namespace, GenerateName: service.Name + "-",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: service.Name, discoveryv1.LabelManagedBy: endpointslice.KubeManagedBy,
			},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(service, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(80)), Protocol: new(corev1.ProtocolTCP)}},
	}
	for _, address := range addresses {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)},
		})
	}
	create(ctx, slice)
	return slice
}

// chargeOf returns who is in charge of the Service's slices, by its condition.
func chargeOf(ctx context.Context, service *corev1.Service) func(Gomega) string {
	return func(g Gomega) string {
		return serviceCondition(refresh(ctx, service)(g), v1alpha1.ServiceEndpointSlicesManaged)
	}
}

var _ = Describe("EndpointSlices beside kube-controller-manager", func() {
	var (
		namespace string
		service   *corev1.Service
	)
	setMode := func(ctx context.Context, mode endpoints.Mode) {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.EndpointSlicesAnnotation, mode)
		Expect(k8sClient.Patch(ctx, service.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)))).To(Succeed())
	}
	standingBy := func() float64 {
		GinkgoHelper()
		families, err := metrics.Registry.Gather()
		Expect(err).NotTo(HaveOccurred())
		for _, family := range families {
			for _, m := range family.GetMetric() {
				if family.GetName() == "causeway_endpointslice_services" && m.GetLabel()[0].GetValue() == "standby" {
					return m.GetGauge().GetValue()
				}
			}
		}
		return 0
	}
	charge := func(ctx context.Context) func(Gomega) string { return chargeOf(ctx, service) }

	BeforeEach(func(ctx SpecContext) {
		namespace = newNamespace(ctx)
		service = newService(namespace, "web", nil)
		create(ctx, service)
		newPod(ctx, namespace, "web-1", "web", newNode(ctx, "zone-a"), true, "10.244.6.1")
	})

	It("are withdrawn once the other controller's cover them, and the Service says so", func(ctx SpecContext) {
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
		other := otherSlice(ctx, service) // empty: it covers nothing
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedBy, endpointslice.KubeManagedBy))
		other.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.244.6.1"}}}
		Expect(k8sClient.Update(ctx, other)).To(Succeed())
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.KubeManagedBy))
		Eventually(charge(ctx)).Should(Equal("False/Standby"))
		Eventually(standingBy).Should(BeNumerically(">=", 1))
		setMode(ctx, endpoints.TakeOver)
		Eventually(charge(ctx)).Should(Equal("True/Managed"))
		Eventually(standingBy).Should(BeZero())
	})

	It("are taken over and handed back in place", func(ctx SpecContext) {
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
		setMode(ctx, endpoints.HandBack)
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.KubeManagedBy))
		Eventually(charge(ctx)).Should(Equal("False/HandedBack"))
		handed := slicesOf(ctx, service)[0]

		setMode(ctx, endpoints.TakeOver)
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedBy))
		Eventually(charge(ctx)).Should(Equal("True/Managed"))
		taken := slicesOf(ctx, service)[0]
		Expect(taken.UID).To(Equal(handed.UID), "it is the same slice")
		Expect(describe(ctx, service)()).To(ConsistOf("10.244.6.1:80 ready serving"))
	})

	It("do not fight another controller that is alive", func(ctx SpecContext) {
		setMode(ctx, endpoints.TakeOver)
		Eventually(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedBy))
		otherSlice(ctx, service, "10.244.6.1")
		Eventually(charge(ctx)).Should(Equal("True/OwnershipConflict"))
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.ManagedBy, endpointslice.KubeManagedBy))
	})

	// kube-controller-manager takes what has its name for its own: it makes the
	// labels those of the Service, and so takes the keeper's label away.
	adopt := func(ctx context.Context) {
		GinkgoHelper()
		for _, slice := range slicesOf(ctx, service) {
			if endpointslice.Manager(service, &slice) == endpointslice.ManagedBy {
				patch := fmt.Sprintf(`{"metadata":{"labels":{%q:null}}}`, v1alpha1.EndpointSliceKeeperLabel)
				Expect(k8sClient.Patch(ctx, &slice, client.RawPatch(types.MergePatchType, []byte(patch)))).To(Succeed())
			}
		}
	}

	It("are left to another controller that adopts them", func(ctx SpecContext) {
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
		before := slicesOf(ctx, service)[0].UID
		adopt(ctx)
		Eventually(charge(ctx)).Should(Equal("False/Standby"))
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.KubeManagedBy))
		Expect(slicesOf(ctx, service)[0].UID).To(Equal(before))
	})

	It("are left for a while to another controller that adopts them in mode take-over", func(ctx SpecContext) {
		setMode(ctx, endpoints.TakeOver)
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
		adopt(ctx)
		Eventually(charge(ctx)).Should(Equal("False/OwnershipConflict"))
		Consistently(managers(ctx, service)).Should(ConsistOf(endpointslice.KubeManagedBy))
	})

	It("keep the name that an earlier version gave them until it cannot come back", func(ctx SpecContext) {
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
		slice := slicesOf(ctx, service)[0]
		slice.Labels[discoveryv1.LabelManagedBy] = endpointslice.ManagedBy
		delete(slice.Labels, v1alpha1.EndpointSliceKeeperLabel)
		Expect(k8sClient.Update(ctx, &slice)).To(Succeed())
		newPod(ctx, namespace, "web-2", "web", newNode(ctx, "zone-b"), true, "10.244.6.2")
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving", "10.244.6.2:80 ready serving"))
		list := slicesOf(ctx, service)
		Expect(list).To(HaveLen(1))
		Expect(list[0].Labels).To(HaveKeyWithValue(discoveryv1.LabelManagedBy, endpointslice.ManagedBy))
	})

	It("of a Service with the keeper's label have a name of their own", func(ctx SpecContext) {
		labelled := newService(namespace, "labelled", func(s *corev1.Service) {
			s.Labels = map[string]string{v1alpha1.EndpointSliceKeeperLabel: v1alpha1.EndpointSliceKeeper}
			s.Spec.Selector = map[string]string{"app": "web"}
		})
		create(ctx, labelled)
		Eventually(managers(ctx, labelled)).Should(ConsistOf(endpointslice.ManagedBy))
		Expect(slicesOf(ctx, labelled)[0].Labels).To(HaveKeyWithValue(discoveryv1.LabelManagedBy, endpointslice.ManagedBy))
	})

	It("report a mode that is none", func(ctx SpecContext) {
		setMode(ctx, "maybe")
		Eventually(charge(ctx)).Should(Equal("True/ModeInvalid"))
		Eventually(describe(ctx, service)).Should(ConsistOf("10.244.6.1:80 ready serving"))
	})
})
