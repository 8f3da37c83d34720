// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/types"
)

var _ = Describe("pacer", func() {
	It("holds up by size, each Service by itself, and no longer than the limit", func() {
		p := pacer{unit: 10 * time.Millisecond, limit: 300 * time.Millisecond}
		now := time.Unix(1_000, 0)
		small, large, other := types.NamespacedName{Name: "small"}, types.NamespacedName{Name: "large"}, types.NamespacedName{Name: "other"}
		Expect(p.wait(small, now)).To(BeZero(), "nothing has been written yet")
		p.wrote(small, 5, now)
		p.wrote(large, 5000, now)
		Expect(p.wait(small, now.Add(20*time.Millisecond))).To(Equal(30 * time.Millisecond))
		Expect(p.wait(large, now)).To(Equal(300 * time.Millisecond))
		Expect(p.wait(other, now)).To(BeZero())
		Expect(p.wait(small, now.Add(50*time.Millisecond))).To(BeZero())
		Expect(p.next).To(HaveLen(1), "what is over is forgotten")
		p.forget(large)
		Expect(p.next).To(BeEmpty())
	})
})
