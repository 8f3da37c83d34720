// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/alloc"
	"github.com/causeway-lb/causeway/internal/allocator"
)

// clusterIPPool creates a pool for a namespace and waits until it is served.
func clusterIPPool(ctx context.Context, namespace string, change func(*v1alpha1.ClusterIPPoolSpec), ranges ...v1alpha1.AddressRange) *v1alpha1.ClusterIPPool {
	GinkgoHelper()
	pool := &v1alpha1.ClusterIPPool{
		ObjectMeta: metav1.ObjectMeta{Name: "pool-" + namespace},
		Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: ranges, NamespaceSelector: inNamespace(namespace)},
	}
	if change != nil {
		change(&pool.Spec)
	}
	create(ctx, pool)
	Eventually(refresh(ctx, pool)).Should(HaveField("Status.ObservedGeneration", pool.Generation))
	return pool
}

func nodePortPool(ctx context.Context, namespace string, change func(*v1alpha1.NodePortPoolSpec), ranges ...v1alpha1.PortRange) *v1alpha1.NodePortPool {
	GinkgoHelper()
	pool := &v1alpha1.NodePortPool{
		ObjectMeta: metav1.ObjectMeta{Name: "pool-" + namespace},
		Spec:       v1alpha1.NodePortPoolSpec{Ranges: ranges, NamespaceSelector: inNamespace(namespace)},
	}
	if change != nil {
		change(&pool.Spec)
	}
	create(ctx, pool)
	Eventually(refresh(ctx, pool)).Should(HaveField("Status.ObservedGeneration", pool.Generation))
	return pool
}

// inside reports whether an address is in a CIDR.
func inside(cidr string) func(string) bool {
	return func(address string) bool {
		a, err := netip.ParseAddr(address)
		return err == nil && netip.MustParsePrefix(cidr).Contains(a)
	}
}

var _ = Describe("the Service webhook", func() {
	nodePortType := func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort }

	It("gives addresses of both families and ports from the namespace's pools", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.16.0/24", "fd00:10:96::1000/120")
		nodePortPool(ctx, ns, nil, "31000-31019")
		svc := newService(ns, "web", func(svc *corev1.Service) {
			svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
			svc.Spec.Type = corev1.ServiceTypeLoadBalancer
			svc.Spec.LoadBalancerClass = ptr.To("example.com/none")
			svc.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			svc.Spec.Ports = []corev1.ServicePort{
				{Name: "dns", Port: 53}, {Name: "dns-udp", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "http", Port: 80},
			}
		})
		create(ctx, svc)
		Expect(svc.Spec.ClusterIPs).To(HaveExactElements(Satisfy(inside("10.96.16.0/24")), Satisfy(inside("fd00:10:96::1000/120"))))
		ports := svc.Spec.Ports
		Expect(ports).To(HaveEach(HaveField("NodePort", And(BeNumerically(">=", 31000), BeNumerically("<=", 31019)))))
		Expect(ports[0].NodePort).To(Equal(ports[1].NodePort), "TCP and UDP of one port share a NodePort")
		Expect(ports[0].NodePort).NotTo(Equal(ports[2].NodePort))
		Expect(svc.Spec.HealthCheckNodePort).To(And(BeNumerically(">=", 31000), BeNumerically("<=", 31019)))
	})

	It("keeps others out of a pool", func(ctx SpecContext) {
		ns, other := newNamespace(ctx), newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.17.0/24")
		nodePortPool(ctx, ns, nil, "31020-31029")
		lbPool := &v1alpha1.LoadBalancerPool{
			ObjectMeta: metav1.ObjectMeta{Name: "pool-" + ns},
			Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: []v1alpha1.AddressRange{"198.51.100.0/28"}, NamespaceSelector: inNamespace(ns)},
		}
		create(ctx, lbPool)
		try := func(change func(*corev1.Service)) error {
			svc := newService(other, "thief", change)
			return k8sClient.Create(ctx, svc, client.DryRunAll)
		}
		Expect(try(func(svc *corev1.Service) { svc.Spec.ClusterIP = "10.96.17.7" })).To(MatchError(ContainSubstring(
			"spec.clusterIPs[0]: 10.96.17.7 belongs to ClusterIPPool pool-" + ns + ", which does not select this Service")))
		Expect(try(func(svc *corev1.Service) {
			svc.Spec.Type = corev1.ServiceTypeNodePort
			svc.Spec.Ports[0].NodePort = 31025
		})).To(MatchError(ContainSubstring("spec.ports[0].nodePort: 31025 belongs to NodePortPool pool-" + ns)))
		Expect(try(func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"10.96.17.9"} })).To(MatchError(ContainSubstring(
			"spec.externalIPs[0]: 10.96.17.9 belongs to ClusterIPPool pool-" + ns)))
		Eventually(func() error {
			return try(func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{"198.51.100.3"} })
		}).Should(MatchError(ContainSubstring("spec.externalIPs[0]: 198.51.100.3 belongs to LoadBalancerPool pool-" + ns)))
		Expect(try(func(svc *corev1.Service) {
			svc.Spec.Type = corev1.ServiceTypeLoadBalancer
			svc.Annotations = map[string]string{v1alpha1.AddressesAnnotation: "198.51.100.4"}
		})).To(MatchError(ContainSubstring("198.51.100.4 belongs to LoadBalancerPool pool-" + ns)))
		for i := range 20 {
			svc := newService(other, "honest"+string(rune('a'+i)), nodePortType)
			create(ctx, svc)
			Expect(svc.Spec.ClusterIP).NotTo(Satisfy(inside("10.96.17.0/24")))
			Expect(svc.Spec.Ports[0].NodePort).NotTo(And(BeNumerically(">=", 31020), BeNumerically("<=", 31029)))
		}
	})

	It("honours what the user asks for in the pool, and names who has it", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.18.0/24")
		nodePortPool(ctx, ns, func(s *v1alpha1.NodePortPoolSpec) { s.ReservedPorts = []v1alpha1.PortRange{"31039"} }, "31030-31039")
		first := newService(ns, "first", func(svc *corev1.Service) {
			nodePortType(svc)
			svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort = "10.96.18.200", 31033
		})
		create(ctx, first)
		Expect(first.Spec.ClusterIP).To(Equal("10.96.18.200"))
		second := newService(ns, "second", func(svc *corev1.Service) { svc.Spec.ClusterIP = "10.96.18.200" })
		Expect(k8sClient.Create(ctx, second)).To(MatchError(ContainSubstring("10.96.18.200 is held by Service " + ns + "/first")))
		third := newService(ns, "third", func(svc *corev1.Service) { nodePortType(svc); svc.Spec.Ports[0].NodePort = 31033 })
		Expect(k8sClient.Create(ctx, third)).To(MatchError(ContainSubstring("31033 is held by Service " + ns + "/first")))
		third.Spec.Ports[0].NodePort = 31039
		Expect(k8sClient.Create(ctx, third)).To(MatchError(ContainSubstring("31039 is reserved in NodePortPool")))
		third.Spec.Ports[0].NodePort = 31040
		Expect(k8sClient.Create(ctx, third)).To(MatchError(ContainSubstring("31040 is not in NodePortPool pool-" + ns + ", which serves this Service")))
	})

	It("leaves no trace of a dry run", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.19.8-10.96.19.8")
		dry := newService(ns, "dry", func(svc *corev1.Service) { svc.Spec.ClusterIP = "10.96.19.8" })
		for range 3 {
			Expect(k8sClient.Create(ctx, dry.DeepCopy(), client.DryRunAll)).To(Succeed())
		}
		real := newService(ns, "real", nil)
		create(ctx, real)
		Expect(real.Spec.ClusterIP).To(Equal("10.96.19.8"))
	})

	It("refuses clearly when the pool is full or the namespace has its share", func(ctx SpecContext) {
		ns, limited := newNamespace(ctx), newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.20.1-10.96.20.2")
		clusterIPPool(ctx, limited, func(s *v1alpha1.ClusterIPPoolSpec) { s.MaxPerNamespace = ptr.To[int32](1) }, "10.96.20.16/28")
		create(ctx, newService(ns, "a", nil))
		create(ctx, newService(ns, "b", nil))
		Expect(k8sClient.Create(ctx, newService(ns, "c", nil))).To(MatchError(MatchRegexp("pool pool-"+ns+` has no free value: of 2, [0-2] are held`)), "some may be on their way still")
		create(ctx, newService(limited, "a", nil))
		Expect(k8sClient.Create(ctx, newService(limited, "b", nil))).To(MatchError(ContainSubstring("namespace " + limited + " holds 1 values")))
	})

	It("gives what a ResourceQuota of the namespace counts, whichever pool it is from", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		nodePortPool(ctx, ns, nil, "31430-31439")
		hard := corev1.ResourceList{corev1.ResourceServicesNodePorts: resource.MustParse("1")}
		quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "ports"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}
		create(ctx, quota)
		// As kube-controller-manager would.
		quota.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{corev1.ResourceServicesNodePorts: resource.MustParse("0")}}
		Expect(k8sClient.Status().Update(ctx, quota)).To(Succeed())
		two := newService(ns, "two", func(svc *corev1.Service) {
			nodePortType(svc)
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "more", Port: 81})
		})
		Eventually(func() error { return k8sClient.Create(ctx, two.DeepCopy(), client.DryRunAll) }).Should(MatchError(ContainSubstring("exceeded quota")))
		one := newService(ns, "one", nodePortType)
		create(ctx, one)
		Expect(one.Spec.Ports[0].NodePort).To(And(BeNumerically(">=", 31430), BeNumerically("<=", 31439)))
		Expect(k8sClient.Create(ctx, newService(ns, "another", nodePortType))).To(MatchError(ContainSubstring("exceeded quota: ports")))
	})

	It("follows a Service through its types", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.21.0/24")
		nodePortPool(ctx, ns, nil, "31050-31059")
		svc := newService(ns, "web", nil)
		create(ctx, svc)
		address := svc.Spec.ClusterIP
		Expect(address).To(Satisfy(inside("10.96.21.0/24")))
		patch := func(text string) {
			GinkgoHelper()
			Expect(k8sClient.Patch(ctx, svc, client.RawPatch("application/merge-patch+json", []byte(text)))).To(Succeed())
		}
		fromPool := And(BeNumerically(">=", 31050), BeNumerically("<=", 31059))
		patch(`{"spec":{"type":"NodePort"}}`)
		port := svc.Spec.Ports[0].NodePort
		Expect(port).To(fromPool)
		patch(`{"spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/none","externalTrafficPolicy":"Local"}}`)
		Expect(svc.Spec.Ports[0].NodePort).To(Equal(port))
		Expect(svc.Spec.HealthCheckNodePort).To(fromPool)
		Expect(svc.Spec.ClusterIP).To(Equal(address))
		patch(`{"spec":{"type":"ExternalName","externalName":"example.com","clusterIP":null,"clusterIPs":null,"ipFamilies":null,"ipFamilyPolicy":null,"loadBalancerClass":null,"externalTrafficPolicy":null,"internalTrafficPolicy":null,"allocateLoadBalancerNodePorts":null,"healthCheckNodePort":null,"ports":null}}`)
		Expect(svc.Spec.ClusterIP).To(BeEmpty())
		patch(`{"spec":{"type":"NodePort","externalName":null,"ports":[{"name":"http","port":80}]}}`)
		Expect(svc.Spec.ClusterIP).To(Equal(address), "it comes back to the address it had")
		Expect(svc.Spec.Ports[0].NodePort).To(Equal(port), "and the port")
		patch(`{"spec":{"type":"ClusterIP"}}`)
		Expect(svc.Spec.Ports[0].NodePort).To(BeZero())
		Expect(svc.Spec.ClusterIP).To(Equal(address))
	})

	It("gives a Service that is deleted and created again what it had", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.22.0/24")
		nodePortPool(ctx, ns, nil, "31060-31089")
		svc := newService(ns, "web", nodePortType)
		create(ctx, svc)
		address, port := svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort
		Expect(k8sClient.Delete(ctx, svc)).To(Succeed())
		pool := &v1alpha1.ClusterIPPool{ObjectMeta: metav1.ObjectMeta{Name: "pool-" + ns}}
		Eventually(refresh(ctx, pool)).Should(HaveField("Status.IPv4.Quarantined", int64(1)))
		hold := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: address}}
		manager := func(g Gomega) string { return refresh(ctx, hold)(g).Labels[networkingv1.LabelManagedBy] }
		Eventually(manager).Should(Equal(v1alpha1.ManagedBy), "the API server's own allocator is kept from the address")
		for i := range 5 {
			stranger := newService(ns, "stranger-"+strings.Repeat("x", i+1), nodePortType)
			create(ctx, stranger)
			Expect(stranger.Spec.ClusterIP).NotTo(Equal(address))
			Expect(stranger.Spec.Ports[0].NodePort).NotTo(Equal(port))
		}
		again := newService(ns, "web", nodePortType)
		create(ctx, again)
		Expect(again.Spec.ClusterIP).To(Equal(address))
		Expect(again.Spec.Ports[0].NodePort).To(Equal(port))
		Expect(manager(NewGomega(Fail))).NotTo(Equal(v1alpha1.ManagedBy), "the API server has it back")
	}, SpecTimeout(time.Minute))

	It("says AlreadyExists, not that the address is taken, of a Service that exists", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.23.0/24")
		create(ctx, newService(ns, "web", nil))
		Expect(k8sClient.Create(ctx, newService(ns, "web", nil))).To(MatchError(ContainSubstring("already exists")))
	})

	It("upgrades a Service to both families", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.24.0/24", "fd00:10:96::2400/120")
		svc := newService(ns, "web", nil)
		create(ctx, svc)
		Expect(svc.Spec.ClusterIPs).To(HaveLen(1))
		svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack)
		Expect(k8sClient.Update(ctx, svc)).To(Succeed())
		Expect(svc.Spec.ClusterIPs).To(HaveExactElements(svc.Spec.ClusterIP, Satisfy(inside("fd00:10:96::2400/120"))))
	})

	It("serves Services without a name of their own", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.25.0/24")
		for range 3 {
			svc := newService(ns, "", func(svc *corev1.Service) { svc.GenerateName = "web-" })
			create(ctx, svc)
			Expect(svc.Spec.ClusterIP).To(Satisfy(inside("10.96.25.0/24")))
		}
	})

	It("is asked again when nobody answers, and leaves the rest to the API server", func(ctx SpecContext) {
		ns := newNamespace(ctx)
		clusterIPPool(ctx, ns, nil, "10.96.26.0/24")
		nodePortPool(ctx, ns, nil, "31410-31429")
		served := func(svc *corev1.Service) bool {
			port := svc.Spec.Ports[0].NodePort
			return inside("10.96.26.0/24")(svc.Spec.ClusterIP) && port >= 31410 && port <= 31429
		}
		n := 0
		next := func() *corev1.Service {
			GinkgoHelper()
			n++
			svc := newService(ns, "web-"+strconv.Itoa(n), nodePortType)
			create(ctx, svc)
			return svc
		}
		breakWebhooks(ctx, "services.causeway.dev", "unserved-services.causeway.dev")
		var outside *corev1.Service
		Eventually(func() bool { outside = next(); return served(outside) }).Should(BeFalse(), "with nobody to ask the API server allocates")
		Eventually(func(g Gomega) string {
			return serviceCondition(refresh(ctx, outside)(g), v1alpha1.ConditionInPool)
		}).Should(Equal("False/OutsidePool"))
		Eventually(eventsOn(ctx, outside)).Should(ContainElement(ContainSubstring("OutsidePool")))
		resting := allocator.NewReservation(alloc.Allocation[netip.Addr]{
			Value: netip.MustParseAddr("10.96.26.77"), Owner: alloc.Owner{Namespace: ns, Name: "former"}, Since: time.Now(), Until: time.Now().Add(time.Hour),
		}, "pool-"+ns)
		create(ctx, resting)
		Expect(k8sClient.Create(ctx, newService(ns, "eager", func(svc *corev1.Service) { svc.Spec.ClusterIP = resting.Name }))).To(
			MatchError(ContainSubstring("provided IP is already allocated")), "even then an address rests")
		breakWebhooks(ctx, "services.causeway.dev")
		Eventually(func() bool { return served(next()) }).Should(BeTrue(), "the second request is answered")
		for range 5 {
			Expect(next()).To(Satisfy(served))
		}
	}, SpecTimeout(time.Minute))
})

// breakWebhooks has the API server call these webhooks of Causeway at a path that
// nobody serves, and all others as ever, until the spec is over.
func breakWebhooks(ctx context.Context, broken ...string) {
	GinkgoHelper()
	var list admissionregistrationv1.MutatingWebhookConfigurationList
	Expect(k8sClient.List(ctx, &list)).To(Succeed())
	Expect(list.Items).To(HaveLen(1))
	config := &list.Items[0]
	for i := range config.Webhooks {
		url := config.Webhooks[i].ClientConfig.URL
		*url = strings.TrimSuffix(*url, "-nowhere")
		if slices.Contains(broken, config.Webhooks[i].Name) {
			*url += "-nowhere"
		}
	}
	Expect(k8sClient.Update(ctx, config)).To(Succeed())
	if len(broken) > 0 {
		DeferCleanup(func(ctx SpecContext) { breakWebhooks(ctx) })
	}
}
