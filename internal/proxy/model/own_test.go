// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/inspect"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Where a load balancer address is bound to the node, what the node sends there
// comes from that address: ranges that admit the node admit it, and no others do.
func TestSourceRangesAdmitTheNodeByItsLoadBalancerIPs(t *testing.T) {
	node := model.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8:0:1::11")}}
	for _, tc := range []struct {
		name   string
		ranges []string
		admits map[string]bool // by source
	}{
		{"the node's", []string{"192.0.2.11/32", "2001:db8:0:1::/64"}, map[string]bool{
			"203.0.113.1": true, "203.0.113.2": true, "203.0.113.3": false, "192.0.2.11": true,
			"2001:db8:9::1": true, "2001:db8:9::2": false, "2001:db8:0:1::11": true}},
		{"with leading zeros", []string{"192.000.002.000/24"}, map[string]bool{"203.0.113.1": true, "2001:db8:9::1": false}},
		{"others'", []string{"198.51.100.0/24", "2001:db8:7::/64"}, map[string]bool{"203.0.113.1": false, "2001:db8:9::1": false, "192.0.2.11": false}},
		{"one family's", []string{"198.51.100.0/24", "2001:db8:0:1::11/128"}, map[string]bool{"203.0.113.1": false, "2001:db8:9::1": true}},
	} {
		svc := &corev1.Service{
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00::1"},
				LoadBalancerSourceRanges: tc.ranges, Ports: []corev1.ServicePort{{Port: 80}}},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
				{IP: "203.0.113.1"}, {IP: "203.0.113.2"}, {IP: "203.0.113.3", IPMode: ptr.To(corev1.LoadBalancerIPModeProxy)}, {IP: "2001:db8:9::1"},
			}}},
		}
		desired, _ := model.Compute(model.Snapshot{Node: node, Services: []model.Input{{Service: svc}}})
		for source, want := range tc.admits {
			a := netip.MustParseAddr(source)
			to := netip.MustParseAddr("203.0.113.1")
			if a.Is6() {
				to = netip.MustParseAddr("2001:db8:9::1")
			}
			got := inspect.Trace(desired, inspect.Expected(desired, inspect.Mode{Families: model.Families[:]}),
				inspect.Packet{Source: a, Destination: to, Port: 80, Protocol: model.TCP, Self: true, ToSelf: true})
			verdict := map[bool]inspect.Verdict{true: inspect.Rejected, false: inspect.Dropped}[want] // there are no endpoints
			if got.Verdict != verdict {
				t.Errorf("ranges are %s, source %s: %s (%s), want %s", tc.name, source, got.Verdict, got.Reason, verdict)
			}
		}
	}
}
