// SPDX-License-Identifier: Apache-2.0

package endpoints

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
	func(mode Mode, change func(*ownership), want decision) {
		now := time.Unix(1_000_000, 0)
		c := ownership{
			service: &corev1.Service{}, mode: mode, controller: "endpointslice-controller", began: now.Add(-time.Hour),
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
	Entry("no slices, auto", Auto, nil, decision{keep: true, history: history{alone: true}}),
	Entry("no slices, and another controller is active, which gets time for a new Service", Auto, func(c *ownership) {
		c.otherActive, c.began = true, c.began.Add(time.Hour-time.Second)
	}, decision{again: graceForOther - time.Second, history: history{alone: true}}),
	Entry("no slices, and another controller is active, which has had its time", Auto, func(c *ownership) { c.otherActive = true },
		decision{keep: true, history: history{alone: true}}),
	Entry("another controller, auto", Auto, func(c *ownership) { c.others = slicesOf("a") },
		decision{reason: reasonStandingBy}),
	Entry("ours, and another controller's that cover them", Auto, func(c *ownership) { c.ours, c.others = slicesOf("a"), slicesOf("a", "b") },
		decision{reason: reasonStandingBy, withdraw: slicesOf("a")}),
	Entry("ours, and another controller's that do not cover them", Auto, func(c *ownership) { c.ours, c.others = slicesOf("a", "b"), slicesOf("a") },
		decision{keep: true, slices: slicesOf("a", "b")}),
	Entry("another controller's, taken over", TakeOver, func(c *ownership) { c.others = slicesOf("a") },
		decision{keep: true, slices: slicesOf("a")}),
	Entry("another controller's that were there before us", TakeOver, func(c *ownership) { c.ours, c.others = slicesOf("a"), slicesOf("b") },
		decision{keep: true, slices: slicesOf("a", "b")}),
	Entry("another controller's that came later: it is alive", TakeOver, func(c *ownership) { c.ours, c.others, c.alone = slicesOf("a"), slicesOf("b"), true },
		decision{keep: true, slices: slicesOf("a"), reason: reasonConflict, history: history{alone: true}}),
	Entry("another controller that has taken ours is left alone at first", TakeOver, func(c *ownership) { c.others, c.alone = slicesOf("a"), true },
		decision{reason: reasonConflict, history: history{alone: true}, again: yieldMin}),
	Entry("and tried again then", TakeOver, func(c *ownership) {
		c.others, c.alone, c.yielded = slicesOf("a"), true, yielded{until: time.Unix(1_000_000, 0), wait: yieldMin}
	}, decision{keep: true, slices: slicesOf("a"), history: history{alone: true}}),
	Entry("and left alone for longer if it takes them again", TakeOver, func(c *ownership) {
		c.others, c.alone, c.yielded = slicesOf("a"), true, yielded{until: time.Unix(1_000_000, 0)}.next(time.Unix(1_000_000, 0)).next(time.Unix(1_000_000, 0))
	}, decision{reason: reasonConflict, history: history{alone: true}, again: 2 * yieldMin}),
	Entry("ours, handed back", HandBack, func(c *ownership) { c.ours = slicesOf("a", "b") },
		decision{reason: reasonHandedBack, relabel: slicesOf("a", "b")}),
	Entry("the Service's annotation outweighs the flag", TakeOver, func(c *ownership) {
		c.others = slicesOf("a")
		c.service.Annotations = map[string]string{v1alpha1.EndpointSlicesAnnotation: string(Auto)}
	}, decision{reason: reasonStandingBy}),
	Entry("an annotation that is no mode counts as none, and is reported", Auto, func(c *ownership) {
		c.ours = slicesOf("a")
		c.service.Annotations = map[string]string{v1alpha1.EndpointSlicesAnnotation: "mine"}
	}, decision{keep: true, slices: slicesOf("a"), reason: reasonWrongMode, history: history{alone: true}}),
)

// slicesOf makes a slice for each address.
func slicesOf(addresses ...string) []*discoveryv1.EndpointSlice {
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
