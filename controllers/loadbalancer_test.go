// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

var _ = Describe("a LoadBalancer Service", func() {
	It("is given the pool's lowest address, as a VIP, with condition, event, finalizer and record", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		Expect(svc.Status.LoadBalancer.Ingress[0].IPMode).To(HaveValue(Equal(corev1.LoadBalancerIPModeVIP)))
		Expect(svc.Finalizers).To(ContainElement(v1alpha1.LoadBalancerFinalizer))
		Expect(svc.Annotations).To(HaveKeyWithValue(v1alpha1.ProvisionerAnnotation, v1alpha1.LoadBalancerClass))
		Expect(serviceCondition(svc, v1alpha1.ServiceAllocated)).To(Equal("True/Allocated"))
		Expect(serviceCondition(svc, v1alpha1.ServiceAnnounced)).To(Equal("Unknown/NoReport"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(HavePrefix("Allocated: " + s.v4(10))))
		record := recordOf(ctx, s.v4(10))(Default)
		Expect(record.Spec.Pool).To(Equal(p.Name))
		Expect(record.Spec.Services).To(Equal([]v1alpha1.ServiceReference{{Namespace: s.namespace, Name: "web", UID: string(svc.UID)}}))
	})

	It("lets go of its address when it is deleted, and another gets it", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		first := s.service(ctx, "first", nil)
		Eventually(addressesOf(ctx, first)).Should(Equal([]string{s.v4(10)}))
		second := s.service(ctx, "second", nil)
		Eventually(allocatedOf(ctx, second)).Should(Equal("False/PoolExhausted"))
		Eventually(eventsOn(ctx, second)).Should(ContainElement(ContainSubstring("No free IPv4 address: pool")))
		Expect(k8sClient.Delete(ctx, first)).To(Succeed())
		Eventually(addressesOf(ctx, second)).Should(Equal([]string{s.v4(10)}))
		Expect(isGone(ctx, first)()).To(BeTrue())
	})

	It("is given what becomes free, though one waits longer that cannot take it", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) {
			p.ServiceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "stranger", Operator: metav1.LabelSelectorOpDoesNotExist}}}
		}, s.v4Range(10, 10))
		first := s.service(ctx, "first", nil)
		Eventually(addressesOf(ctx, first)).Should(Equal([]string{s.v4(10)}))
		stranger := s.service(ctx, "stranger", func(svc *corev1.Service) { svc.Labels = map[string]string{"stranger": "yes"} })
		Eventually(allocatedOf(ctx, stranger)).Should(Equal("False/NoPool"))
		dual := s.service(ctx, "dual", func(svc *corev1.Service) {
			svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
		})
		Eventually(allocatedOf(ctx, dual)).Should(HavePrefix("False/"))
		last := s.service(ctx, "last", nil)
		Eventually(allocatedOf(ctx, last)).Should(Equal("False/PoolExhausted"))
		Expect(k8sClient.Delete(ctx, first)).To(Succeed())
		Eventually(addressesOf(ctx, last)).Should(Equal([]string{s.v4(10)}))
	})

	It("lets go of its address when it changes its type, and nothing of ours is left on it", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).ShouldNot(BeEmpty())
		record := recordOf(ctx, s.v4(10))(Default)
		edit(ctx, svc, func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeClusterIP })
		Eventually(isGone(ctx, record)).Should(BeTrue())
		Eventually(func(g Gomega) {
			refresh(ctx, svc)(g)
			g.Expect(svc.Finalizers).To(BeEmpty())
			g.Expect(svc.Annotations).NotTo(HaveKey(v1alpha1.ProvisionerAnnotation))
			g.Expect(svc.Status.LoadBalancer.Ingress).To(BeEmpty())
			g.Expect(serviceCondition(svc, v1alpha1.ServiceAllocated)).To(BeEmpty())
			g.Expect(serviceCondition(svc, v1alpha1.ServiceAnnounced)).To(BeEmpty())
		}).Should(Succeed())
	})

	It("of another class is left alone, finalizer and all", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		svc := s.service(ctx, "web", func(svc *corev1.Service) {
			svc.Spec.LoadBalancerClass = ptr.To("example.com/other")
			svc.Finalizers = []string{v1alpha1.LoadBalancerFinalizer}
		})
		Consistently(addressesOf(ctx, svc)).Should(BeEmpty())
		Expect(svc.Finalizers).To(ContainElement(v1alpha1.LoadBalancerFinalizer))
		Expect(svc.Status.Conditions).To(BeEmpty())
		edit(ctx, svc, func(svc *corev1.Service) { svc.Finalizers = nil })
	})

	It("whose class is no longer configured reports it, and is deleted when its finalizer is removed by hand", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		svc := s.service(ctx, "web", func(svc *corev1.Service) {
			svc.Spec.LoadBalancerClass = ptr.To("example.com/gone")
			svc.Annotations[v1alpha1.ProvisionerAnnotation] = "example.com/gone"
			svc.Finalizers = []string{v1alpha1.LoadBalancerFinalizer}
		})
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(And(HavePrefix("ClassNotConfigured: "), ContainSubstring("configure it again"))))
		Expect(isGone(ctx, svc)()).To(BeFalse())
		edit(ctx, svc, func(svc *corev1.Service) { svc.Finalizers = nil })
		Eventually(isGone(ctx, svc)).Should(BeTrue())
	})

	It("of our class is served", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		svc := s.service(ctx, "web", func(svc *corev1.Service) { svc.Spec.LoadBalancerClass = ptr.To(v1alpha1.LoadBalancerClass) })
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
	})

	It("needs no NodePorts", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		svc := s.service(ctx, "web", func(svc *corev1.Service) { svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false) })
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		Expect(svc.Spec.Ports[0].NodePort).To(BeZero())
	})

	DescribeTable("asks for an address", func(ctx SpecContext, ask func(address string) func(*corev1.Service)) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		svc := s.service(ctx, "web", ask(s.v4(15)))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(15)}))
	},
		Entry("by annotation", func(a string) func(*corev1.Service) { return asksFor(a) }),
		Entry("by spec.loadBalancerIP", func(a string) func(*corev1.Service) {
			return func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = a }
		}),
		Entry("by both: the annotation counts", func(a string) func(*corev1.Service) {
			return func(svc *corev1.Service) { asksFor(a)(svc); svc.Spec.LoadBalancerIP = "203.0.113.1" }
		}),
	)

	It("gets several addresses on request, in the order asked for", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19))
		svc := s.service(ctx, "web", asksFor(s.v4(17), s.v4(12)))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(17), s.v4(12)}))
	})

	It("stays pending with an address outside every pool, while others go on", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 11))
		lost := s.service(ctx, "lost", asksFor(s.v4(200)))
		fine := s.service(ctx, "fine", nil)
		Eventually(allocatedOf(ctx, lost)).Should(Equal("False/AddressOutsidePools"))
		message := meta.FindStatusCondition(lost.Status.Conditions, v1alpha1.ServiceAllocated).Message
		Expect(message).To(ContainSubstring(s.v4(200) + " is in no LoadBalancerPool"))
		Eventually(eventsOn(ctx, lost)).Should(ContainElement(ContainSubstring("AddressOutsidePools: " + s.v4(200))))
		Eventually(addressesOf(ctx, fine)).Should(Equal([]string{s.v4(10)}))
		Expect(addressesOf(ctx, lost)(Default)).To(BeEmpty())

		By("adding the address to the pool")
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) {
			p.Spec.Addresses = append(p.Spec.Addresses, s.v4Range(200, 200))
		})
		Eventually(addressesOf(ctx, lost)).Should(Equal([]string{s.v4(200)}))
	})

	DescribeTable("asks for what cannot be", func(ctx SpecContext, change func(*corev1.Service), reason, note string) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 11))
		svc := s.service(ctx, "web", change)
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/" + reason))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(And(HavePrefix(reason+": "), ContainSubstring(note))))
	},
		Entry("no address", asksFor("web.example.com"), "InvalidRequest", "is not an IP address"),
		Entry("the same twice", asksFor("192.0.2.1", "192.0.2.1"), "InvalidRequest", "is listed twice"),
		Entry("a family that it is not of", asksFor("2001:db8::1"), "InvalidRequest", "add IPv6 to spec.ipFamilies"),
		Entry("a pool that is not there", annotate(v1alpha1.PoolAnnotation, "nowhere"), "NoPool", "There is no LoadBalancerPool nowhere"),
	)

	It("keeps what it has when its request becomes impossible", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 11))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		edit(ctx, svc, asksFor("203.0.113.250"))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/AddressOutsidePools"))
		Expect(addressesOf(ctx, svc)(Default)).To(Equal([]string{s.v4(10)}))
		edit(ctx, svc, asksFor("nonsense"))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/InvalidRequest"))
		Expect(addressesOf(ctx, svc)(Default)).To(Equal([]string{s.v4(10)}))
		edit(ctx, svc, asksFor(s.v4(11)))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(11)}))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("True/Allocated"))
	})

	It("chooses pools by name, priority and selectors", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 10))
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.Priority = 5 }, s.v4Range(20, 20))
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) {
			p.Priority = 9
			p.ServiceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gold"}}
		}, s.v4Range(30, 30))
		named := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.AutoAssign, p.Priority = ptr.To(false), 10 }, s.v4Range(40, 40))

		gold := s.service(ctx, "gold", func(svc *corev1.Service) { svc.Labels = map[string]string{"tier": "gold"} })
		Eventually(addressesOf(ctx, gold)).Should(Equal([]string{s.v4(30)}))
		first := s.service(ctx, "first", nil)
		Eventually(addressesOf(ctx, first)).Should(Equal([]string{s.v4(20)}))
		second := s.service(ctx, "second", nil)
		Eventually(addressesOf(ctx, second)).Should(Equal([]string{s.v4(10)}))
		byName := s.service(ctx, "by-name", annotate(v1alpha1.PoolAnnotation, named.Name))
		Eventually(addressesOf(ctx, byName)).Should(Equal([]string{s.v4(40)}))
	})

	It("passes over .0 and .255 where the pool says so, unless asked", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.AvoidBuggyIPs = true }, s.v4Range(0, 1), s.v4Range(255, 255))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(1)}))
		b := s.service(ctx, "b", nil)
		Eventually(allocatedOf(ctx, b)).Should(Equal("False/PoolExhausted"))
		c := s.service(ctx, "c", asksFor(s.v4(255)))
		Eventually(addressesOf(ctx, c)).Should(Equal([]string{s.v4(255)}))
	})
})

var _ = Describe("dual-stack LoadBalancer Services", func() {
	dual := func(policy corev1.IPFamilyPolicy) func(*corev1.Service) {
		return func(svc *corev1.Service) { svc.Spec.IPFamilyPolicy = &policy }
	}

	It("with RequireDualStack get both or nothing", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		svc := s.service(ctx, "web", dual(corev1.IPFamilyPolicyRequireDualStack))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/NoPool"))
		Expect(addressesOf(ctx, svc)(Default)).To(BeEmpty())
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Addresses = append(p.Spec.Addresses, s.v6Range(5, 9)) })
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10), s.v6(5)}))
	})

	It("with PreferDualStack get what there is, and the rest when it comes", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v6Range(5, 9))
		svc := s.service(ctx, "web", dual(corev1.IPFamilyPolicyPreferDualStack))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v6(5)}))
		Expect(allocatedOf(ctx, svc)(Default)).To(Equal("True/PartlyAllocated"))
		s.pool(ctx, nil, s.v4Range(10, 10))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10), s.v6(5)}))
		Expect(allocatedOf(ctx, svc)(Default)).To(Equal("True/Allocated"))
	})

	It("take both from one pool when one has both", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.Priority = 9 }, s.v4Range(10, 19))
		s.pool(ctx, nil, s.v4Range(20, 29), s.v6Range(5, 9))
		svc := s.service(ctx, "web", dual(corev1.IPFamilyPolicyRequireDualStack))
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(20), s.v6(5)}))
	})

	It("lose the second family when they become SingleStack", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(10, 19), s.v6Range(5, 9))
		svc := s.service(ctx, "web", dual(corev1.IPFamilyPolicyRequireDualStack))
		Eventually(addressesOf(ctx, svc)).Should(HaveLen(2))
		edit(ctx, svc, func(svc *corev1.Service) {
			svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
			svc.Spec.IPFamilies, svc.Spec.ClusterIPs = svc.Spec.IPFamilies[:1], svc.Spec.ClusterIPs[:1]
		})
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
	})
})

var _ = Describe("LoadBalancer controllers", func() {
	It("two at once, one of them killed five times, give no address twice and none away", func(ctx SpecContext) {
		const services = 60
		s := newLBSpec(ctx)
		s.pool(ctx, nil, s.v4Range(1, 100))
		var all []*corev1.Service
		for kill := range 5 {
			// The suite's manager goes on meanwhile: without leader election both
			// work, which is worse than any change of leaders.
			stop := startManager(newLoadBalancerManager())
			for i := range services / 5 {
				all = append(all, s.service(ctx, fmt.Sprintf("web-%d-%d", kill, i), nil))
			}
			stop()
		}
		given := map[string]string{}
		for _, svc := range all {
			Eventually(addressesOf(ctx, svc)).Should(HaveLen(1))
			addr := svc.Status.LoadBalancer.Ingress[0].IP
			Expect(given).NotTo(HaveKey(addr), "%s has the address of %s", svc.Name, given[addr])
			given[addr] = svc.Name
		}
		stop := startManager(newLoadBalancerManager())
		defer stop()
		Consistently(func(g Gomega) {
			for _, svc := range all {
				before := svc.Status.LoadBalancer.Ingress[0].IP
				g.Expect(addressesOf(ctx, svc)(g)).To(Equal([]string{before}))
			}
		}).Should(Succeed())
		var records v1alpha1.LoadBalancerAddressList
		Eventually(func(g Gomega) int {
			g.Expect(k8sClient.List(ctx, &records)).To(Succeed())
			n := 0
			for _, r := range records.Items {
				if len(r.Spec.Services) > 0 && r.Spec.Services[0].Namespace == s.namespace {
					n++
				}
			}
			return n
		}).Should(Equal(services), "no record is left over from a race")
	}, NodeTimeout(2*time.Minute))
})

// newLoadBalancerManager is another controller, as a second replica would be,
// with nothing but the LoadBalancer part and no webhooks.
func newLoadBalancerManager() ctrl.Manager {
	GinkgoHelper()
	mgr := newManager(0)
	opts := suiteOptions()
	opts.Features = Features{LoadBalancer: true}
	opts.SystemNamespace = v1alpha1.SystemNamespace
	Expect(SetupWithManager(mgr, opts)).To(Succeed())
	return mgr
}
