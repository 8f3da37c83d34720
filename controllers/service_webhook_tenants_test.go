// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// A tenant's Service is there already, and honest; then it is edited to take
// what belongs to another tenant. The other way, a tenant's own edits pass.
var _ = Describe("an edit that reaches into another tenant's pool", func() {
	ours := func(svc *corev1.Service) {
		svc.Spec.Type = corev1.ServiceTypeLoadBalancer
		svc.Spec.LoadBalancerClass = ptr.To("example.com/none") // nobody serves it: what the webhook lets pass stays
		svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
	}
	externalName := func(svc *corev1.Service) {
		svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}
	}
	net := 0 // of the present entry
	v4 := func(last int) string { return fmt.Sprintf("10.96.%d.%d", 208+net, last) }
	v6 := func(last int) string { return fmt.Sprintf("fd00:10:96::d%x%02x", net, last) }
	port := func(last int) int32 { return int32(31500 + 10*net + last) }
	lan := func(last int) string { return fmt.Sprintf("198.51.100.%d", 64+16*net+last) }

	DescribeTable("is refused, naming the field and the pool", func(ctx SpecContext, before, after func(*corev1.Service), field, kind string) {
		net++
		owner, other := newNamespace(ctx), newNamespace(ctx)
		clusterIPPool(ctx, owner, nil, v1alpha1.AddressRange(v4(0)+"/24"), v1alpha1.AddressRange(v6(0)+"/120"))
		askedFor := func(s *v1alpha1.NodePortPoolSpec) { s.StaticBand = ptr.To[int32](8) } // what is asked for below is given to nobody else
		nodePortPool(ctx, owner, askedFor, v1alpha1.PortRange(fmt.Sprintf("%d-%d", port(0), port(9))))
		lbPool := &v1alpha1.LoadBalancerPool{Spec: v1alpha1.LoadBalancerPoolSpec{
			Addresses: []v1alpha1.AddressRange{v1alpha1.AddressRange(lan(0) + "/28")}, NamespaceSelector: inNamespace(owner),
		}}
		lbPool.Name = "pool-" + owner
		create(ctx, lbPool)
		probe := newService(other, "probe", func(svc *corev1.Service) { svc.Spec.ExternalIPs = []string{lan(1)} })
		Eventually(func() error { return k8sClient.Create(ctx, probe.DeepCopy(), client.DryRunAll) }).ShouldNot(Succeed(), "the webhook knows all pools")

		thief := newService(other, "thief", before)
		create(ctx, thief)
		stored := thief.DeepCopy()
		after(thief)
		Expect(k8sClient.Update(ctx, thief)).To(MatchError(And(
			ContainSubstring(field+": "), ContainSubstring("belongs to "+kind+" pool-"+owner+", which does not select this Service"))))
		Expect(refresh(ctx, thief)(Default).Spec).To(Equal(stored.Spec), "nothing of it is stored")

		By("the owner's edit, which passes")
		honest := newService(owner, "honest", before)
		create(ctx, honest)
		after(honest)
		Expect(k8sClient.Update(ctx, honest)).To(Succeed())
	},
		Entry("a ClusterIP, when it stops being an ExternalName", externalName, func(svc *corev1.Service) {
			svc.Spec = corev1.ServiceSpec{ClusterIP: v4(7), Ports: []corev1.ServicePort{{Port: 80}}}
		}, "spec.clusterIPs[0]", "ClusterIPPool"),
		Entry("an address of the second family", nil, func(svc *corev1.Service) {
			svc.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack)
			svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, v6(7))
		}, "spec.clusterIPs[1]", "ClusterIPPool"),
		Entry("a NodePort, with the type", nil, func(svc *corev1.Service) {
			svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, port(3)
		}, "spec.ports[0].nodePort", "NodePortPool"),
		Entry("another NodePort than it has", func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort }, func(svc *corev1.Service) {
			svc.Spec.Ports[0].NodePort = port(4)
		}, "spec.ports[0].nodePort", "NodePortPool"),
		Entry("the NodePort of one port more", func(svc *corev1.Service) { svc.Spec.Type = corev1.ServiceTypeNodePort }, func(svc *corev1.Service) {
			svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "more", Port: 81, NodePort: port(5)})
		}, "spec.ports[1].nodePort", "NodePortPool"),
		Entry("a health check NodePort, with policy Local", ours, func(svc *corev1.Service) {
			svc.Spec.ExternalTrafficPolicy, svc.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, port(6)
		}, "spec.healthCheckNodePort", "NodePortPool"),
		Entry("an external IP of a ClusterIPPool", nil, func(svc *corev1.Service) {
			svc.Spec.ExternalIPs = []string{"192.0.2.1", v4(9)}
		}, "spec.externalIPs[1]", "ClusterIPPool"),
		Entry("an external IP of a LoadBalancerPool", nil, func(svc *corev1.Service) {
			svc.Spec.ExternalIPs = []string{lan(2)}
		}, "spec.externalIPs[0]", "LoadBalancerPool"),
		Entry("spec.loadBalancerIP", ours, func(svc *corev1.Service) {
			svc.Spec.LoadBalancerIP = lan(3)
		}, "spec.loadBalancerIP", "LoadBalancerPool"),
		Entry("the annotation", ours, func(svc *corev1.Service) {
			asksFor("203.0.113.9", lan(4))(svc)
		}, "metadata.annotations["+v1alpha1.AddressesAnnotation+"]", "LoadBalancerPool"),
		Entry("an annotation that was there before the type", func(svc *corev1.Service) { asksFor(lan(5))(svc) }, ours,
			"metadata.annotations["+v1alpha1.AddressesAnnotation+"]", "LoadBalancerPool"),
	)

	It("by the pool's name gets no address of it, keeps what it has, and is told", func(ctx SpecContext) {
		owner, other := newLBSpec(ctx), newLBSpec(ctx)
		gold := owner.pool(ctx, nil, owner.v4Range(10, 19))
		other.pool(ctx, nil, other.v4Range(10, 19))
		svc := other.service(ctx, "thief", nil)
		Eventually(addressesOf(ctx, svc)).Should(Equal([]string{other.v4(10)}))
		edit(ctx, svc, annotate(v1alpha1.PoolAnnotation, gold.Name))
		Eventually(allocatedOf(ctx, svc)).Should(Equal("False/NoPool"))
		Expect(meta.FindStatusCondition(svc.Status.Conditions, v1alpha1.ServiceAllocated).Message).To(ContainSubstring(gold.Name))
		Consistently(addressesOf(ctx, svc)).Should(Equal([]string{other.v4(10)}))
	})
})
