// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// poolMetric reads one value of causeway_loadbalancer_pool_addresses.
func poolMetric(pool, family, state string) func(Gomega) float64 {
	return func(g Gomega) float64 {
		families, err := metrics.Registry.Gather()
		g.Expect(err).NotTo(HaveOccurred())
		for _, f := range families {
			if f.GetName() != "causeway_loadbalancer_pool_addresses" {
				continue
			}
			for _, m := range f.GetMetric() {
				labels := map[string]string{}
				for _, l := range m.GetLabel() {
					labels[l.GetName()] = l.GetValue()
				}
				if labels["pool"] == pool && labels["family"] == family && labels["state"] == state {
					return m.GetGauge().GetValue()
				}
			}
		}
		return -1
	}
}

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
		Eventually(ready(ctx, p, v1alpha1.PoolAvailable)).Should(Equal("False/NoFreeAddress"))
		for state, n := range map[string]float64{"assigned": 2, "excluded": 1, "free": 0, "reserved": 0, "quarantined": 0, "draining": 0} {
			Eventually(poolMetric(p.Name, "IPv4", state)).Should(Equal(n), state)
		}
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

	It("that no longer admits a Service leaves it its address, after a restart too", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		other := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.Priority = 9 }, s.v4Range(20, 29))
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) {
			p.Spec.NamespaceSelector = inNamespace("elsewhere")
			p.Spec.AutoAssign = ptr.To(false)
		})
		b := s.service(ctx, "b", nil)
		Eventually(addressesOf(ctx, b)).Should(Equal([]string{s.v4(20)}), "of pool %s", other.Name)
		stop := startManager(newLoadBalancerManager())
		defer stop()
		edit(ctx, a, func(svc *corev1.Service) { svc.Labels = map[string]string{"touched": "yes"} })
		Consistently(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		Expect(allocatedOf(ctx, a)(Default)).To(Equal("True/Allocated"))
	})

	It("admits the namespaces that its selector does, also when they are labelled later", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) {
			p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": s.namespace}}
		}, s.v4Range(10, 19))
		svc := s.service(ctx, "web", nil)
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/NoPool"))
		Eventually(eventsOn(ctx, svc)).Should(ContainElement(ContainSubstring("does not admit the Service by its namespaceSelector")))
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}
		edit(ctx, namespace, func(n *corev1.Namespace) { metav1.SetMetaDataLabel(&n.ObjectMeta, "team", s.namespace) })
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{s.v4(10)}))
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

	It("that drains can be edited in other ways, whatever its policy is then", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 19))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.Addresses = []v1alpha1.AddressRange{s.v4Range(15, 19)} })
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) {
			p.Spec.RemovalPolicy, p.Spec.Disabled = v1alpha1.RemovalRefuse, true
		})
		edit(ctx, p, func(p *v1alpha1.LoadBalancerPool) { p.Spec.RemovalPolicy = v1alpha1.RemovalDrain })
	})

	It("takes with it the records that rest in it", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, func(p *v1alpha1.LoadBalancerPoolSpec) { p.Quarantine = &metav1.Duration{Duration: time.Hour} }, s.v4Range(10, 19))
		a := s.service(ctx, "a", nil)
		Eventually(addressesOf(ctx, a)).Should(Equal([]string{s.v4(10)}))
		Expect(k8sClient.Delete(ctx, a)).To(Succeed())
		Eventually(func(g Gomega) *metav1.Time { return recordOf(ctx, s.v4(10))(g).Spec.ReleasedAt }).ShouldNot(BeNil())
		record := recordOf(ctx, s.v4(10))(Default)
		Expect(k8sClient.Delete(ctx, p)).To(Succeed())
		Eventually(isGone(ctx, record)).Should(BeTrue())
	})

	It("does not give out what belongs to a node, to Pods or to Services", func(ctx SpecContext) {
		s := newLBSpec(ctx)
		p := s.pool(ctx, nil, s.v4Range(10, 12), s.v4Range(64, 67), s.v6Range(5, 6))
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{GenerateName: "node-"}, Spec: corev1.NodeSpec{PodCIDR: s.v4(64) + "/30", PodCIDRs: []string{s.v4(64) + "/30"}}}
		create(ctx, node)
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: s.v4(10)}}
		Expect(k8sClient.Status().Update(ctx, node)).To(Succeed())
		Eventually(ready(ctx, p, v1alpha1.PoolDisjoint)).Should(Equal("False/Overlap"))
		Eventually(func(g Gomega) *v1alpha1.PoolUsage { return refresh(ctx, p)(g).Status.IPv4 }).
			Should(Equal(&v1alpha1.PoolUsage{Total: 7, Excluded: 5, Free: 2}))
		message := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PoolDisjoint).Message
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
		Eventually(ready(ctx, p, v1alpha1.PoolDisjoint)).Should(Equal("False/Overlap"))
		Expect(slices.IndexFunc(p.Status.Conditions, func(c metav1.Condition) bool { return strings.Contains(c.Message, "ServiceCIDR kubernetes") })).To(BeNumerically(">=", 0))
		svc := s.service(ctx, "web", nil)
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/PoolExhausted"))
	})
})
