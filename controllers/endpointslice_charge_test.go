// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

var _ = DescribeTable("who is in charge of slices",
	func(mode EndpointSliceMode, change func(*claim), want decision) {
		now := time.Unix(1_000_000, 0)
		c := claim{
			service: &corev1.Service{}, mode: mode, rival: "endpointslice-controller", began: now.Add(-time.Hour),
		}
		if change != nil {
			change(&c)
		}
		got := c.decide(now)
		Expect(got.keep).To(Equal(want.keep), "keep")
		Expect(got.reason).To(Equal(want.reason), "reason")
		Expect(got.again).To(Equal(want.again), "again")
		Expect(got.alone).To(Equal(want.alone), "alone")
		Expect(got.slices).To(HaveLen(len(want.slices)), "slices to keep")
		Expect(got.relabel).To(HaveLen(len(want.relabel)), "slices to relabel")
		Expect(got.withdraw).To(HaveLen(len(want.withdraw)), "slices to withdraw")
		Expect(got.message == "").To(Equal(got.reason == ""), "a reason comes with a message: %q", got.message)
	},
	Entry("nobody, auto", EndpointSlicesAuto, nil, decision{keep: true, alone: true}),
	Entry("nobody, and a rival about that gets a moment for a new Service", EndpointSlicesAuto, func(c *claim) {
		c.rivalAbout, c.began = true, c.began.Add(time.Hour-time.Second)
	}, decision{again: graceForRival - time.Second, alone: true}),
	Entry("nobody, and a rival about that has had its moment", EndpointSlicesAuto, func(c *claim) { c.rivalAbout = true },
		decision{keep: true, alone: true}),
	Entry("a rival, auto", EndpointSlicesAuto, func(c *claim) { c.rivals = claimed("a") },
		decision{reason: reasonStandingBy}),
	Entry("ours, and a rival's that cover them", EndpointSlicesAuto, func(c *claim) { c.ours, c.rivals = claimed("a"), claimed("a", "b") },
		decision{reason: reasonStandingBy, withdraw: claimed("a")}),
	Entry("ours, and a rival's that do not cover them", EndpointSlicesAuto, func(c *claim) { c.ours, c.rivals = claimed("a", "b"), claimed("a") },
		decision{keep: true, slices: claimed("a", "b")}),
	Entry("a rival's, taken over", EndpointSlicesTakeOver, func(c *claim) { c.rivals = claimed("a") },
		decision{keep: true, slices: claimed("a")}),
	Entry("a rival's that were there before us", EndpointSlicesTakeOver, func(c *claim) { c.ours, c.rivals = claimed("a"), claimed("b") },
		decision{keep: true, slices: claimed("a", "b")}),
	Entry("a rival's that came later: it is alive", EndpointSlicesTakeOver, func(c *claim) { c.ours, c.rivals, c.alone = claimed("a"), claimed("b"), true },
		decision{keep: true, slices: claimed("a"), reason: reasonContested, alone: true}),
	Entry("a rival that has taken ours is left alone at first", EndpointSlicesTakeOver, func(c *claim) { c.rivals, c.alone = claimed("a"), true },
		decision{reason: reasonContested, alone: true, again: yieldMin}),
	Entry("and tried again then", EndpointSlicesTakeOver, func(c *claim) {
		c.rivals, c.alone, c.yielded = claimed("a"), true, yielded{until: time.Unix(1_000_000, 0), wait: yieldMin}
	}, decision{keep: true, slices: claimed("a"), alone: true}),
	Entry("and left alone for longer if it takes them again", EndpointSlicesTakeOver, func(c *claim) {
		c.rivals, c.alone, c.yielded = claimed("a"), true, yielded{until: time.Unix(1_000_000, 0)}.next(time.Unix(1_000_000, 0)).next(time.Unix(1_000_000, 0))
	}, decision{reason: reasonContested, alone: true, again: 2 * yieldMin}),
	Entry("ours, handed back", EndpointSlicesHandBack, func(c *claim) { c.ours = claimed("a", "b") },
		decision{reason: reasonHandedBack, relabel: claimed("a", "b")}),
	Entry("the Service's annotation outweighs the flag", EndpointSlicesTakeOver, func(c *claim) {
		c.rivals = claimed("a")
		c.service.Annotations = map[string]string{v1alpha1.EndpointSlicesAnnotation: string(EndpointSlicesAuto)}
	}, decision{reason: reasonStandingBy}),
	Entry("an annotation that is no mode counts as none, and is reported", EndpointSlicesAuto, func(c *claim) {
		c.ours = claimed("a")
		c.service.Annotations = map[string]string{v1alpha1.EndpointSlicesAnnotation: "mine"}
	}, decision{keep: true, slices: claimed("a"), reason: reasonWrongMode, alone: true}),
)

// claimed makes a slice for each address.
func claimed(addresses ...string) []*discoveryv1.EndpointSlice {
	var list []*discoveryv1.EndpointSlice
	for _, address := range addresses {
		list = append(list, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: address, Labels: map[string]string{}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{address}}},
		})
	}
	return list
}
