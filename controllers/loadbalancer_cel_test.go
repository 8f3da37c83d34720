// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Rules that the API server checks by itself, with or without the webhook. All
// objects are created as dry runs.
var _ = Describe("rules of LoadBalancerPools", func() {
	pool := func(change func(*v1alpha1.LoadBalancerPoolSpec), ranges ...v1alpha1.AddressRange) *v1alpha1.LoadBalancerPool {
		p := &v1alpha1.LoadBalancerPool{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "rules-"},
			Spec:       v1alpha1.LoadBalancerPoolSpec{Addresses: ranges, NamespaceSelector: inNamespace("none")},
		}
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	failback := func(mode v1alpha1.FailbackMode, delay time.Duration) func(*v1alpha1.LoadBalancerPoolSpec) {
		return func(s *v1alpha1.LoadBalancerPoolSpec) {
			s.Failback.Mode = mode
			if delay != 0 {
				s.Failback.Delay = &metav1.Duration{Duration: delay}
			}
		}
	}
	quarantine := func(d time.Duration) func(*v1alpha1.LoadBalancerPoolSpec) {
		return func(s *v1alpha1.LoadBalancerPoolSpec) { s.Quarantine = &metav1.Duration{Duration: d} }
	}
	interfaces := func(names ...v1alpha1.InterfacePattern) func(*v1alpha1.LoadBalancerPoolSpec) {
		return func(s *v1alpha1.LoadBalancerPoolSpec) { s.Interfaces = names }
	}
	const fine v1alpha1.AddressRange = "203.0.113.128/28"

	DescribeTable("accepted", func(ctx SpecContext, p *v1alpha1.LoadBalancerPool) {
		Expect(k8sClient.Create(ctx, p, client.DryRunAll)).To(Succeed())
	},
		Entry("CIDRs of both families", pool(nil, "203.0.113.128/28", "2001:db8:ffff::/64")),
		Entry("an inclusive range", pool(nil, "203.0.113.128-203.0.113.131")),
		Entry("an IPv6 range", pool(nil, "2001:db8:ffff::1-2001:db8:ffff::9")),
		Entry("one address", pool(nil, "203.0.113.128/32")),
		Entry("a range at the edge of what hosts can have", pool(nil, "126.255.255.250-126.255.255.255", "128.0.0.0-128.0.0.9", "223.255.255.0/24", "2001:db8::1-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")),
		Entry("beside link-local addresses", pool(nil, "169.253.255.0/24", "169.255.0.0/24", "169.255.1.0-169.255.2.0", "fec0::/64")),
		Entry("unique local addresses", pool(nil, "fd00::/64", "fe00::1-fe00::9")),
		Entry("all of a /8", pool(nil, "11.0.0.0-11.255.255.255")),
		Entry("no quarantine", pool(quarantine(0), fine)),
		Entry("a quarantine of a week", pool(quarantine(168*time.Hour), fine)),
		Entry("failback after a while", pool(failback(v1alpha1.FailbackDelayed, time.Minute), fine)),
		Entry("no failback", pool(failback(v1alpha1.FailbackNever, 0), fine)),
		Entry("interface patterns", pool(interfaces("eth0", "bond*"), fine)),
	)

	DescribeTable("refused", func(ctx SpecContext, p *v1alpha1.LoadBalancerPool, message string) {
		Expect(k8sClient.Create(ctx, p, client.DryRunAll)).To(MatchError(ContainSubstring(message)))
	},
		Entry("no addresses", pool(nil), "spec.addresses: Required value"),
		Entry("nonsense", pool(nil, fine, "office"), `spec.addresses[1]: Invalid value: "office": must be a CIDR`),
		Entry("a bare address", pool(nil, "203.0.113.7"), "write a single address as 192.0.2.7/32"),
		Entry("leading zeros", pool(nil, "203.0.113.007/32"), "no leading zeros"),
		Entry("spaces", pool(nil, "203.0.113.1 - 203.0.113.9"), "use no spaces"),
		Entry("IPv4-mapped addresses", pool(nil, "::ffff:203.0.113.0/124"), "no IPv4-mapped IPv6 addresses"),
		Entry("bits after the prefix", pool(nil, "203.0.113.7/24"), "has bits set after the prefix length"),
		Entry("half the Internet", pool(nil, "128.0.0.0/1"), "is larger than a /8 (IPv4) or a /32 (IPv6)"),
		Entry("a range larger than a /8", pool(nil, "10.0.0.0-11.255.255.255"), "goes beyond one /8 (IPv4) or /32 (IPv6)"),
		Entry("a range larger than a /32", pool(nil, "2001:db8::1-2001:db9::1"), "goes beyond one /8 (IPv4) or /32 (IPv6)"),
		Entry("loopback", pool(nil, "127.0.0.0/8"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("a range in loopback", pool(nil, "127.0.0.1-127.0.0.9"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("this network", pool(nil, "0.0.0.0-0.0.0.9"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("this network as a CIDR", pool(nil, "0.0.0.0/24"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("IPv6 loopback", pool(nil, "::1/128"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("a range with IPv6 loopback", pool(nil, "::-::9"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("a range of IPv4-mapped addresses", pool(nil, "::ffff:203.0.113.1-::ffff:203.0.113.9"), "no IPv4-mapped IPv6 addresses"),
		Entry("a range over the IPv4-mapped addresses", pool(nil, "::fffe:0:0-::1:0:0:0"), "holds unspecified, loopback or IPv4-mapped addresses"),
		Entry("IPv4 link-local", pool(nil, "169.254.0.0/16"), "holds link-local addresses"),
		Entry("a part of IPv4 link-local", pool(nil, "169.254.7.0/24"), "holds link-local addresses"),
		Entry("a CIDR around IPv4 link-local", pool(nil, "169.0.0.0/8"), "holds link-local addresses"),
		Entry("a range around IPv4 link-local", pool(nil, "169.250.0.0-169.255.0.9"), "holds link-local addresses"),
		Entry("a range into IPv4 link-local", pool(nil, "169.250.0.0-169.254.0.9"), "holds link-local addresses"),
		Entry("a range out of IPv4 link-local", pool(nil, "169.254.255.0-169.255.0.9"), "holds link-local addresses"),
		Entry("IPv6 link-local", pool(nil, "fe80::/64"), "holds link-local addresses"),
		Entry("a range of IPv6 link-local", pool(nil, "febf::1-febf::9"), "holds link-local addresses"),
		Entry("IPv4 multicast", pool(nil, "224.0.0.0/8"), "holds multicast addresses"),
		Entry("a range of IPv4 multicast", pool(nil, "239.255.0.1-239.255.0.9"), "holds multicast addresses"),
		Entry("IPv6 multicast", pool(nil, "ff02::/64"), "holds multicast addresses"),
		Entry("a range of IPv6 multicast", pool(nil, "ff05::1-ff05::9"), "holds multicast addresses"),
		Entry("the broadcast address", pool(nil, "255.255.255.255/32"), "holds reserved addresses"),
		Entry("class E", pool(nil, "240.0.0.0-240.0.0.9"), "holds reserved addresses"),
		Entry("two families in one range", pool(nil, "203.0.113.7-2001:db8::1"), "goes from one address family to the other"),
		Entry("a range that ends before it begins", pool(nil, "203.0.113.9-203.0.113.1"), `"203.0.113.9-203.0.113.1" ends before it begins`),
		Entry("the same entry twice", pool(nil, fine, fine), "Duplicate value"),
		Entry("entries that overlap", pool(nil, fine, "203.0.113.130/32"), "203.0.113.130 overlaps 203.0.113.128-203.0.113.143 of the same pool in 203.0.113.130"),
		Entry("more than a week of quarantine", pool(quarantine(169*time.Hour), fine), "must be at most 168h"),
		Entry("a negative quarantine", pool(quarantine(-time.Second), fine), "spec.quarantine"),
		Entry("a delay without the mode", pool(failback(v1alpha1.FailbackNever, time.Minute), fine), "delay goes with mode Delayed"),
		Entry("the mode without a delay", pool(failback(v1alpha1.FailbackDelayed, 0), fine), "delay goes with mode Delayed"),
		Entry("a delay of two weeks", pool(failback(v1alpha1.FailbackDelayed, 336*time.Hour), fine), "must be more than 0s and at most 168h"),
		Entry("an interface with a slash", pool(interfaces("eth/0"), fine), "must be an interface name or a pattern"),
		Entry("an interface with a space", pool(interfaces("eth 0"), fine), "must be an interface name or a pattern"),
		Entry("an unknown removal policy", pool(func(s *v1alpha1.LoadBalancerPoolSpec) { s.RemovalPolicy = "Shrug" }, fine), `supported values: "Refuse", "Drain"`),
		Entry("a priority out of range", pool(func(s *v1alpha1.LoadBalancerPoolSpec) { s.Priority = 1001 }, fine), "spec.priority"),
		Entry("a selector that cannot be read", pool(func(s *v1alpha1.LoadBalancerPoolSpec) {
			s.ServiceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Near"}}}
		}, fine), "spec.serviceSelector"),
		Entry("a name that is no label value", func() *v1alpha1.LoadBalancerPool {
			p := pool(nil, fine)
			p.Name = "a-name-of-more-than-sixty-three-characters-which-no-label-value-may-have"
			return p
		}(), "use at most 63 characters"),
	)

	It("says that an unreadable duration is one", func(ctx SpecContext) {
		p := pool(nil, fine)
		raw := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "causeway.dev/v1alpha1", "kind": "LoadBalancerPool", "metadata": map[string]any{"generateName": p.GenerateName},
			"spec": map[string]any{"addresses": []any{string(fine)}, "quarantine": "soon"},
		}}
		Expect(k8sClient.Create(ctx, raw, client.DryRunAll)).To(MatchError(ContainSubstring("spec.quarantine")))
	})
})

var _ = Describe("rules of LoadBalancerAddresses", func() {
	const v4, v6 = "203.0.113.7", "2001-0db8-0000-0000-0000-0000-0000-0007"
	address := func(name string, spec v1alpha1.LoadBalancerAddressSpec) *v1alpha1.LoadBalancerAddress {
		return &v1alpha1.LoadBalancerAddress{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	}
	one := []v1alpha1.ServiceReference{{Namespace: "a", Name: "a", UID: "1"}}
	two := []v1alpha1.ServiceReference{{Namespace: "a", Name: "a", UID: "1"}, {Namespace: "a", Name: "b", UID: "2"}}
	now := metav1.Now()

	DescribeTable("accepted", func(ctx SpecContext, a *v1alpha1.LoadBalancerAddress) {
		Expect(k8sClient.Create(ctx, a, client.DryRunAll)).To(Succeed())
	},
		Entry("IPv4", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p"})),
		Entry("IPv6", address(v6, v1alpha1.LoadBalancerAddressSpec{Address: "2001:db8::7", Pool: "p"})),
		Entry("a reservation in no pool", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Reserved: true})),
		Entry("a reservation for a Service", address(v4, v1alpha1.LoadBalancerAddressSpec{
			Address: v4, Reserved: true, ReservedFor: &v1alpha1.ServiceName{Namespace: "a", Name: "a"}})),
		Entry("in use", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", Services: one})),
		Entry("shared", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", Services: two, SharingKey: "k"})),
		Entry("in quarantine", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", ReleasedAt: &now})),
	)

	DescribeTable("refused", func(ctx SpecContext, a *v1alpha1.LoadBalancerAddress, message string) {
		Expect(k8sClient.Create(ctx, a, client.DryRunAll)).To(MatchError(ContainSubstring(message)))
	},
		Entry("another name", address("203.0.113.8", v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p"}), "the name must be made from spec.address"),
		Entry("a short IPv6 name", address("2001-db8--7", v1alpha1.LoadBalancerAddressSpec{Address: "2001:db8::7", Pool: "p"}), "the name must be made from spec.address"),
		Entry("no address", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: "seven", Pool: "p"}), "must be an IPv4 or IPv6 address in its shortest lower-case form"),
		Entry("loopback", address("127.0.0.1", v1alpha1.LoadBalancerAddressSpec{Address: "127.0.0.1", Reserved: true}), "at which no Service can be reached"),
		Entry("a long form", address(v6, v1alpha1.LoadBalancerAddressSpec{Address: "2001:db8:0::7", Pool: "p"}), "must be an IPv4 or IPv6 address in its shortest lower-case form"),
		Entry("no pool", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4}), "pool is missing"),
		Entry("two without a key", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", Services: two}), "only Services with the same sharing key"),
		Entry("released though held", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", Services: one, ReleasedAt: &now}), "leave it out while services are listed"),
		Entry("reservedFor alone", address(v4, v1alpha1.LoadBalancerAddressSpec{Address: v4, Pool: "p", ReservedFor: &v1alpha1.ServiceName{Namespace: "a", Name: "a"}}), "reservedFor goes with reserved: true"),
	)

	It("keeps spec.address", func(ctx SpecContext) {
		a := address("203.0.113.99", v1alpha1.LoadBalancerAddressSpec{Address: "203.0.113.99", Reserved: true})
		create(ctx, a)
		a.Spec.Address = "203.0.113.98"
		Expect(k8sClient.Update(ctx, a)).To(MatchError(ContainSubstring("is immutable: delete this object")))
		Expect(k8sClient.Get(ctx, client.ObjectKeyFromObject(a), a)).To(Succeed())
		a.Spec.Pool = "elsewhere"
		Expect(k8sClient.Update(ctx, a)).To(Succeed())
	})
})
