// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"net/netip"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/causeway-lb/causeway/internal/provisioner"
)

var _ = DescribeTable("addresses of the status that a Service gives up",
	func(current, asked, held []netip.Addr, told string) {
		recorder := events.NewFakeRecorder(4)
		r := &ServiceReconciler{Recorder: recorder}
		r.reportReleased(&corev1.Service{}, provisioner.Request{Current: current, Addresses: asked}, held)
		if told == "" {
			Expect(recorder.Events).To(BeEmpty())
			return
		}
		Expect(recorder.Events).To(Receive(And(ContainSubstring("AddressesReleased"), ContainSubstring("gives up "+told+":"))))
	},
	Entry("one of a family", addressList("192.0.2.1", "2001:db8::1"), nil, addressList("192.0.2.1", "2001:db8::1"), ""),
	Entry("two of IPv4", addressList("192.0.2.1", "192.0.2.2", "2001:db8::1"), nil, addressList("192.0.2.1", "2001:db8::1"), "192.0.2.2"),
	Entry("three of IPv6", addressList("2001:db8::1", "2001:db8::2", "2001:db8::3"), nil, addressList("2001:db8::2"), "2001:db8::1, 2001:db8::3"),
	Entry("one that is exchanged", addressList("192.0.2.1"), nil, addressList("192.0.2.9"), ""),
	Entry("as the Service asks for", addressList("192.0.2.1", "192.0.2.2"), addressList("192.0.2.1"), addressList("192.0.2.1"), ""),
)

func addressList(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, text := range texts {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}
