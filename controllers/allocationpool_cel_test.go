// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Rules that the API server checks by itself, with or without the webhook. The
// pools select nothing that exists, and are created as dry runs.
var _ = Describe("rules of allocation pools", func() {
	clusterIPPool := func(ranges ...v1alpha1.AddressRange) *v1alpha1.ClusterIPPool {
		return &v1alpha1.ClusterIPPool{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "rules-"},
			Spec:       v1alpha1.ClusterIPPoolSpec{Ranges: ranges, NamespaceSelector: inNamespace("none")},
		}
	}
	nodePortPool := func(ranges ...v1alpha1.PortRange) *v1alpha1.NodePortPool {
		return &v1alpha1.NodePortPool{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "rules-"},
			Spec:       v1alpha1.NodePortPoolSpec{Ranges: ranges, NamespaceSelector: inNamespace("none")},
		}
	}
	with := func(p *v1alpha1.ClusterIPPool, change func(*v1alpha1.ClusterIPPoolSpec)) *v1alpha1.ClusterIPPool {
		change(&p.Spec)
		return p
	}

	DescribeTable("accepted", func(ctx SpecContext, pool client.Object) {
		Expect(k8sClient.Create(ctx, pool, client.DryRunAll)).To(Succeed())
	},
		Entry("CIDRs of both families", clusterIPPool("10.96.250.0/24", "fd00:10:96::fa00/120")),
		Entry("an inclusive range", clusterIPPool("10.96.250.10-10.96.250.20")),
		Entry("one address", clusterIPPool("10.96.250.7/32")),
		Entry("no quarantine", with(clusterIPPool("10.96.250.0/24"), func(s *v1alpha1.ClusterIPPoolSpec) { s.Quarantine = &metav1.Duration{} })),
		Entry("limits", with(clusterIPPool("10.96.250.0/24"), func(s *v1alpha1.ClusterIPPoolSpec) {
			s.MaxPerNamespace, s.StaticBand, s.Priority = ptr.To[int32](1), ptr.To[int32](0), -1000
		})),
		Entry("ports", nodePortPool("32700-32710", "32720")),
	)

	DescribeTable("refused", func(ctx SpecContext, pool client.Object, message string) {
		Expect(k8sClient.Create(ctx, pool, client.DryRunAll)).To(MatchError(ContainSubstring(message)))
	},
		Entry("no range", clusterIPPool(), "spec.ranges: Required value"),
		Entry("nonsense", clusterIPPool("10.96.250.0/24", "tenant-a"), "spec.ranges[1]: Invalid value: \"tenant-a\": must be a CIDR"),
		Entry("a single address", clusterIPPool("10.96.250.7"), "write a single address as 192.0.2.7/32"),
		Entry("bits after the prefix", clusterIPPool("10.96.250.7/24"), "has bits set after the prefix length"),
		Entry("loopback", clusterIPPool("127.0.0.0/16"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("link-local", clusterIPPool("169.254.7.0-169.254.7.9"), "holds link-local addresses"),
		Entry("multicast", clusterIPPool("ff02::/112"), "holds multicast addresses"),
		Entry("class E", clusterIPPool("240.0.0.0/16"), "holds reserved addresses"),
		Entry("a range larger than a /8", clusterIPPool("10.0.0.0-11.255.255.255"), "goes beyond one /8 (IPv4) or /32 (IPv6)"),
		Entry("two families in one range", clusterIPPool("10.96.250.7-fd00::1"), "goes from one address family to the other"),
		Entry("the same entry twice", clusterIPPool("10.96.250.0/24", "10.96.250.0/24"), "Duplicate value"),
		Entry("a quarantine of a week", with(clusterIPPool("10.96.250.0/24"), func(s *v1alpha1.ClusterIPPoolSpec) {
			s.Quarantine = &metav1.Duration{Duration: 168 * time.Hour}
		}), "must be at most 24h"),
		Entry("a limit of nothing", with(clusterIPPool("10.96.250.0/24"), func(s *v1alpha1.ClusterIPPoolSpec) {
			s.MaxPerNamespace = ptr.To[int32](0)
		}), "spec.maxPerNamespace in body should be greater than or equal to 1"),
		Entry("port 0", nodePortPool("0-10"), "must be a range of ports such as 30000-30499"),
		Entry("port 70000", nodePortPool("32700-70000"), "from 1 to 65535"),
		Entry("ports the wrong way round", nodePortPool("32710-32700"), "ends before it begins"),
		Entry("a word for a port", nodePortPool("http"), "must be a range of ports"),
	)
})
