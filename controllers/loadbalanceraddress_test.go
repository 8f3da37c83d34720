// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

var _ = Describe("a shared LoadBalancer address", func() {
	sharing := func(key string, port int32) func(*corev1.Service) {
		return func(svc *corev1.Service) {
			annotate(v1alpha1.SharingKeyAnnotation, key)(svc)
			svc.Spec.Ports[0].Port = port
		}
	}

	It("serves Services with one key and different ports, also with policy Local", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", sharing("k", 80))
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		b := s.service(ctx, "b", func(svc *corev1.Service) {
			sharing("k", 443)(svc)
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		})
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(10)}))
		Eventually(func(g Gomega) []v1alpha1.ServiceReference { return recordOf(ctx, s.v4(10))(g).Spec.Services }).Should(HaveLen(2))

		By("a third with a port that is taken, which gets an address of its own")
		c := s.service(ctx, "c", sharing("k", 443))
		Eventually(addressesOf(ctx, c)).Should(Equal([]string{s.v4(11)}))

		By("deleting the first, which leaves the second where it is")
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		Eventually(func(g Gomega) []v1alpha1.ServiceReference { return recordOf(ctx, s.v4(10))(g).Spec.Services }).Should(HaveLen(1))
		Consistently(addressesOf(ctx, b)).Should(Equal([]string{s.v4(10)}))
	})

	DescribeTable("is refused", func(ctx SpecContext, change func(*corev1.Service), reason, note string) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", sharing("k", 80))
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		b := s.service(ctx, "b", func(svc *corev1.Service) {
			change(svc)
			asksFor(s.v4(10))(svc)
		})
		Eventually(allocatedOf(ctx, b)).Should(Equal("False/" + reason))
		Eventually(eventsOn(ctx, b)).Should(ContainElement(ContainSubstring(note)))
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(10)}))
	},
		Entry("without a key", func(*corev1.Service) {}, "AddressInUse", "is held by Service"),
		Entry("with another key", sharing("other", 443), "SharingNotAllowed", "with another sharing key"),
		Entry("with the same port", sharing("k", 80), "SharingNotAllowed", "port 80/TCP"),
	)

	It("reports a port that collides later, at that port", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", sharing("k", 80))
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		b := s.service(ctx, "b", sharing("k", 443))
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(10)}))
		edit(ctx, b, func(svc *corev1.Service) { svc.Spec.Ports[0].Port = 80 })
		Eventually(func(g Gomega) []corev1.PortStatus {
			return refresh(ctx, b)(g).Status.LoadBalancer.Ingress[0].Ports
		}).Should(Equal([]corev1.PortStatus{{Port: 80, Protocol: corev1.ProtocolTCP, Error: ptr.To("causeway.dev/PortTaken")}}))
		edit(ctx, a, func(svc *corev1.Service) { svc.Spec.Ports[0].Port = 81 })
		Eventually(func(g Gomega) []corev1.PortStatus {
			return refresh(ctx, b)(g).Status.LoadBalancer.Ingress[0].Ports
		}).Should(BeEmpty())
	})
})

var _ = Describe("LoadBalancer address records", func() {
	It("rest after release, except for their former owner and for who asks by address", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.Quarantine = &metav1.Duration{Duration: time.Hour} }, s.v4Range(10, 11))
		a := s.service(ctx, "a", nil)
		b := s.service(ctx, "b", nil)
		Eventually(addressesOf(ctx, a)).Should(HaveLen(1))
		Eventually(addressesOf(ctx, b)).Should(HaveLen(1))
		hadA, hadB := a.Status.LoadBalancer.Ingress[0].IP, b.Status.LoadBalancer.Ingress[0].IP
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		Expect(k8sClient.Delete(ctx, b)).To(Succeed())
		Eventually(func(g Gomega) *v1alpha1.ServiceName { return recordOf(ctx, hadA)(g).Spec.ReleasedBy }).
			Should(Equal(&v1alpha1.ServiceName{Namespace: s.namespace, Name: "a"}))
		Eventually(isGone(ctx, b)).Should(BeTrue())

		other := s.service(ctx, "other", nil)
		Eventually(allocatedOf(ctx, other)).Should(Equal("False/PoolExhausted"))
		again := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, again)).Should(Equal([]string{hadA}))
		asking := s.service(ctx, "asking", asksFor(hadB))
		Eventually(addressesOf(ctx, asking)).Should(Equal([]string{hadB}))
		Expect(recordOf(ctx, hadB)(Default).Spec.ReleasedAt).To(BeNil())

		By("ending the quarantine, which gives the address to the one who waits")
		Expect(k8sClient.Delete(ctx, again)).To(Succeed())
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Quarantine = &metav1.Duration{Duration: time.Second} })
		Eventually(addressesOf(ctx, other)).Should(Equal([]string{hadA}))
	})

	It("can be reserved: for who asks, or for one Service, and outlive it", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		reserve := func(addr string, forService *v1alpha1.ServiceName) {
			create(ctx, &v1alpha1.LoadBalancerAddress{
				ObjectMeta: metav1.ObjectMeta{Name: addr},
				Spec:       v1alpha1.LoadBalancerAddressSpec{Address: addr, Reserved: true, ReservedFor: forService},
			})
		}
		reserve(s.v4(10), nil)
		reserve(s.v4(11), &v1alpha1.ServiceName{Namespace: s.namespace, Name: "mine"})
		p := s.pool(ctx, nil, s.v4Range(10, 12))
		Eventually(func(g Gomega) *v1alpha1.PoolUsage { return refresh(ctx, p)(g).Status.IPv4 }).
			Should(Equal(&v1alpha1.PoolUsage{Total: 3, Reserved: 2, Free: 1}))
		auto := s.service(ctx, "auto", nil)
		Eventually(addressesOf(ctx, auto)).Should(Equal([]string{s.v4(12)}))
		mine := s.service(ctx, "mine", nil)
		Eventually(addressesOf(ctx, mine)).Should(Equal([]string{s.v4(11)}))
		thief := s.service(ctx, "thief", asksFor(s.v4(11)))
		Eventually(allocatedOf(ctx, thief)).Should(Equal("False/AddressNotAllowed"))
		asking := s.service(ctx, "asking", asksFor(s.v4(10)))
		Eventually(addressesOf(ctx, asking)).Should(Equal([]string{s.v4(10)}))

		Expect(k8sClient.Delete(ctx, asking)).To(Succeed())
		Eventually(func(g Gomega) []v1alpha1.ServiceReference { return recordOf(ctx, s.v4(10))(g).Spec.Services }).Should(BeEmpty())
		Expect(recordOf(ctx, s.v4(10))(Default).Spec.Reserved).To(BeTrue())
		Expect(recordOf(ctx, s.v4(10))(Default).Spec.ReleasedAt).To(BeNil())
	})

	It("that somebody deletes come back with the same address", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		first := s.service(ctx, "first", nil)
		Eventually(addressesOf(ctx, first)).Should(Equal([]string{s.v4(10)}))
		svc := s.service(ctx, "web", asksFor(s.v4(15)))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(15)}))
		edit(ctx, svc, func(svc *corev1.Service) { delete(svc.Annotations, v1alpha1.AddressesAnnotation) })
		Eventually(allocatedOf(ctx, svc)).Should(Equal("True/Allocated"))
		uid := recordOf(ctx, s.v4(15))(Default).UID
		Expect(k8sClient.Delete(ctx, recordOf(ctx, s.v4(15))(Default))).To(Succeed())
		Eventually(func(g Gomega) bool { return recordOf(ctx, s.v4(15))(g).UID != uid }).Should(BeTrue())
		Consistently(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(15)}))
	})

	It("show on the Service who announces", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		announce := func(node string, status metav1.ConditionStatus, reason, message string) {
			GinkgoHelper()
			Eventually(func(g Gomega) {
				a := recordOf(ctx, s.v4(10))(g)
				a.Status.Node, a.Status.Interface, a.Status.Since = node, "eth0", ptr.To(metav1.Now())
				meta.SetStatusCondition(&a.Status.Conditions, metav1.Condition{Type: v1alpha1.AddressAnnounced, Status: status, Reason: reason, Message: message})
				g.Expect(k8sClient.Status().Update(ctx, a)).To(Succeed())
			}).Should(Succeed())
		}
		announced := func(g Gomega) string { return serviceCondition(refresh(ctx, svc)(g), v1alpha1.ServiceAnnounced) }
		announce("node-1", metav1.ConditionTrue, "Announced", "")
		Eventually(announced).Should(Equal("True/Announced"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement("Announced: " + s.v4(10) + " is announced by node-1 on eth0"))
		announce("node-2", metav1.ConditionTrue, "Announced", "")
		Eventually(eventsOn(ctx, svc)).Should(ContainElement("Announced: " + s.v4(10) + " is announced by node-2 on eth0"))
		announce("", metav1.ConditionFalse, "NoEligibleNode", "node-1 is cordoned, node-2 has no carrier")
		Eventually(announced).Should(Equal("False/NoEligibleNode"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(ContainSubstring("is not announced: node-1 is cordoned")))
		Expect(addressesOf(ctx, svc)(Default)).To(Equal([]string{s.v4(10)}))
	})
})
