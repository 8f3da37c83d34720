// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// lbNet numbers the specs: each has 192 addresses of its own, 198.18.N.0/26 to
// 198.18.N.128/26, and 2001:db8:1b:N::/64.
var lbNet atomic.Int32

// lbSpec is the world of one spec: a namespace and ranges that nobody else uses.
type lbSpec struct {
	namespace string
	n         int32
}

func newLBSpec(ctx context.Context, labels ...map[string]string) lbSpec {
	return lbSpec{namespace: newNamespace(ctx, labels...), n: lbNet.Add(1)}
}

// v4 is the i-th IPv4 address of the spec, v6 the i-th IPv6 address.
func (s lbSpec) v4(i int) string { return fmt.Sprintf("198.18.%d.%d", s.n, i) }
func (s lbSpec) v6(i int) string { return fmt.Sprintf("2001:db8:1b:%x::%x", s.n, i) }

// v4Range and v6Range are addresses i to j.
func (s lbSpec) v4Range(i, j int) v1alpha1.AddressRange {
	return v1alpha1.AddressRange(s.v4(i) + "-" + s.v4(j))
}
func (s lbSpec) v6Range(i, j int) v1alpha1.AddressRange {
	return v1alpha1.AddressRange(s.v6(i) + "-" + s.v6(j))
}

// pool makes a pool for the spec's namespace, without quarantine.
func (s lbSpec) pool(ctx context.Context, change func(*v1alpha1.LoadBalancerPoolSpec), ranges ...v1alpha1.AddressRange) *v1alpha1.LoadBalancerPool {
	GinkgoHelper()
	p := &v1alpha1.LoadBalancerPool{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "lb-"},
		Spec: v1alpha1.LoadBalancerPoolSpec{
			Addresses: ranges, NamespaceSelector: inNamespace(s.namespace),
			Quarantine: &metav1.Duration{}, RemovalPolicy: v1alpha1.RemovalDrain,
		},
	}
	if change != nil {
		change(&p.Spec)
	}
	create(ctx, p)
	return p
}

// service makes a Service of type LoadBalancer.
func (s lbSpec) service(ctx context.Context, name string, change func(*corev1.Service)) *corev1.Service {
	GinkgoHelper()
	svc := newService(s.namespace, name, func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Annotations = map[string]string{}
		if change != nil {
			change(svc)
		}
	})
	create(ctx, svc)
	return svc
}

func annotate(key, value string) func(*corev1.Service) {
	return func(svc *corev1.Service) { metav1.SetMetaDataAnnotation(&svc.ObjectMeta, key, value) }
}

func asksFor(addresses ...string) func(*corev1.Service) {
	return annotate(v1alpha1.AddressesAnnotation, strings.Join(addresses, ","))
}

// addressesOf are the ingress IPs that a Service has now.
func addressesOf(ctx context.Context, svc *corev1.Service) func(Gomega) []string {
	return func(g Gomega) (out []string) {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(svc), svc)).To(Succeed())
		for _, in := range svc.Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
		return out
	}
}

// allocatedOf is the condition Allocated as "Status/Reason".
func allocatedOf(ctx context.Context, svc *corev1.Service) func(Gomega) string {
	return func(g Gomega) string {
		return serviceCondition(refresh(ctx, svc)(g), v1alpha1.ServiceAllocated)
	}
}

// recordOf reads the record of an address.
func recordOf(ctx context.Context, addr string) func(Gomega) *v1alpha1.LoadBalancerAddress {
	return func(g Gomega) *v1alpha1.LoadBalancerAddress {
		a := &v1alpha1.LoadBalancerAddress{}
		name := v1alpha1.LoadBalancerAddressName(netip.MustParseAddr(addr))
		g.Expect(k8sClient.Get(ctx, client.ObjectKey{Name: name}, a)).To(Succeed())
		return a
	}
}

// isGone tells whether an object is not there.
func isGone(ctx context.Context, obj client.Object) func() bool {
	return func() bool { return apierrors.IsNotFound(k8sClient.Get(ctx, client.ObjectKeyFromObject(obj), obj)) }
}

// edit changes an object, again when somebody else did.
func edit[T client.Object](ctx context.Context, obj T, change func(T)) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(obj), obj)).To(Succeed())
		change(obj)
		g.Expect(k8sClient.Update(ctx, obj)).To(Succeed())
	}).Should(Succeed())
}

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
		Entry("with another key", sharing("other", 443), "SharingRefused", "with another sharing key"),
		Entry("with the same port", sharing("k", 80), "SharingRefused", "port 80/TCP"),
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

var _ = Describe("a LoadBalancerPool", func() {
	ready := func(ctx context.Context, p *v1alpha1.LoadBalancerPool, condition string) func(Gomega) string {
		return func(g Gomega) string { return conditionText(refresh(ctx, p)(g).Status.Conditions, condition) }
	}

	It("counts its addresses", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.AvoidBuggyIPs = true }, s.v4Range(0, 2), s.v6Range(5, 9))
		s.service(ctx, "a", nil)
		b := s.service(ctx, "b", nil)
		Eventually(addressesOf(ctx, b)).Should(HaveLen(1))
		Eventually(func(g Gomega) []*v1alpha1.PoolUsage {
			refresh(ctx, p)(g)
			return []*v1alpha1.PoolUsage{p.Status.IPv4, p.Status.IPv6}
		}).
			Should(Equal([]*v1alpha1.PoolUsage{{Total: 3, Assigned: 2, Excluded: 1}, {Total: 5, Free: 5}}))
		Eventually(ready(ctx, p, v1alpha1.PoolReady)).Should(Equal("True/Ready"))
		Eventually(ready(ctx, p, v1alpha1.PoolExhausted)).Should(Equal("True/NoFreeAddress"))
		Expect(p.Status.ObservedGeneration).To(Equal(p.Generation))
	})

	It("that is disabled keeps what is assigned and gives nothing new", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Disabled = true })
		Eventually(ready(ctx, p, v1alpha1.PoolReady)).Should(Equal("False/Disabled"))
		b := s.service(ctx, "b", nil)
		Eventually(allocatedOf(ctx, b)).Should(Equal("False/NoPool"))
		Expect(addressesOf(ctx, a)(Default)).To(Equal([]string{s.v4(10)}))
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Disabled = false })
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(11)}))
	})

	It("that overlaps another is refused, and the message says which", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		other := &v1alpha1.LoadBalancerPool{ObjectMeta: metav1.ObjectMeta{GenerateName: "lb-"}, Spec: v1alpha1.LoadBalancerPoolSpec{
			Addresses: []v1alpha1.AddressRange{s.v4Range(15, 25)}, NamespaceSelector: inNamespace("none")}}
		Eventually(func() error { return k8sClient.Create(ctx, other.DeepCopy(), client.DryRunAll) }).
			Should(MatchError(ContainSubstring(fmt.Sprintf("%s-%s overlaps %s-%s of pool %s in %s-%s",
				s.v4(15), s.v4(25), s.v4(10), s.v4(19), p.Name, s.v4(15), s.v4(19)))))
		other.Spec.Addresses = []v1alpha1.AddressRange{s.v4Range(20, 25)}
		Expect(k8sClient.Create(ctx, other, client.DryRunAll)).To(Succeed())
	})

	It("is not shrunk or deleted while its addresses are in use, by default", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.RemovalPolicy = v1alpha1.RemovalRefuse }, s.v4Range(10, 19))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
		shrink := func() error {
			Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
			p.Spec.Addresses = []v1alpha1.AddressRange{s.v4Range(11, 19)}
			return k8sClient.Update(ctx, p)
		}
		inUse := fmt.Sprintf("%s (Service %s/web)", s.v4(10), s.namespace)
		Eventually(shrink).Should(MatchError(And(ContainSubstring("are in use"), ContainSubstring(inUse), ContainSubstring("removalPolicy: Drain"))))
		Expect(k8sClient.Delete(ctx, p)).To(MatchError(ContainSubstring(inUse)))
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		Eventually(shrink).Should(Succeed())
		Expect(k8sClient.Delete(ctx, p)).To(Succeed())
		Eventually(isGone(ctx, p)).Should(BeTrue())
	})

	It("drains where it is told to: nothing is taken away", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Addresses = []v1alpha1.AddressRange{s.v4Range(15, 19)} })
		Eventually(func(g Gomega) *v1alpha1.PoolUsage { return refresh(ctx, p)(g).Status.IPv4 }).
			Should(Equal(&v1alpha1.PoolUsage{Total: 5, Free: 5, Draining: 1}))
		b := s.service(ctx, "b", nil)
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(15)}))

		By("deleting it")
		Expect(k8sClient.Delete(ctx, p)).To(Succeed())
		Eventually(ready(ctx, p, v1alpha1.PoolReady)).Should(Equal("False/Deleting"))
		Consistently(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		Expect(addressesOf(ctx, b)(Default)).To(Equal([]string{s.v4(15)}))
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		Expect(k8sClient.Delete(ctx, b)).To(Succeed())
		Eventually(isGone(ctx, p)).Should(BeTrue())
	})

	It("does not give out what belongs to a node, to Pods or to Services", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 12), s.v4Range(64, 67), s.v6Range(5, 6))
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{GenerateName: "node-"}, Spec: corev1.NodeSpec{PodCIDR: s.v4(64) + "/30", PodCIDRs: []string{s.v4(64) + "/30"}}}
		create(ctx, node)
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: s.v4(10)}}
		Expect(k8sClient.Status().Update(ctx, node)).To(Succeed())
		Eventually(ready(ctx, p, v1alpha1.PoolOverlapping)).Should(Equal("True/Overlap"))
		Eventually(func(g Gomega) *v1alpha1.PoolUsage { return refresh(ctx, p)(g).Status.IPv4 }).
			Should(Equal(&v1alpha1.PoolUsage{Total: 7, Excluded: 5, Free: 2}))
		message := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PoolOverlapping).Message
		Expect(message).To(And(ContainSubstring(s.v4(10)+" (node "+node.Name+")"), ContainSubstring("the Pods of node")))
		svc := s.service(ctx, "web", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(11)}))
		asking := s.service(ctx, "asking", asksFor(s.v4(10)))
		Eventually(allocatedOf(ctx, asking)).Should(Equal("False/AddressNotAllowed"))
		Expect(k8sClient.Delete(ctx, node)).To(Succeed())
		Eventually(addressesOf(ctx, asking)).Should(Equal([]string{s.v4(10)}))
	})

	It("in the range of ClusterIPs gives out nothing from there", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, "10.96.240.0/30")
		Eventually(ready(ctx, p, v1alpha1.PoolOverlapping)).Should(Equal("True/Overlap"))
		Expect(slices.IndexFunc(p.Status.Conditions, func(c metav1.Condition) bool { return strings.Contains(c.Message, "ServiceCIDR kubernetes") })).To(BeNumerically(">=", 0))
		svc := s.service(ctx, "web", nil)
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/PoolExhausted"))
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
