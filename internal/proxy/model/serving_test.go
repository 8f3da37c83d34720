// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Whom an established flow may stay with: more than get new ones, but nobody who
// cannot answer.
func TestServing(t *testing.T) {
	ready := discoveryv1.EndpointConditions{Ready: ptr.To(true)}
	draining := discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
	unready := discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false)}
	ending := discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false), Terminating: ptr.To(true)}
	type pod struct {
		node string
		is   discoveryv1.EndpointConditions
	}
	for _, tc := range []struct {
		name     string
		pods     []pod // 10.244.0.1, .2 and so on
		udp, tcp []string
	}{
		{"ready, anywhere", []pod{{"node-1", ready}, {"node-2", ready}}, []string{"10.244.0.1:80", "10.244.0.2:80"}, []string{"10.244.0.1:80", "10.244.0.2:80"}},
		{"beside a ready one", []pod{{"node-1", ready}, {"node-1", draining}, {"node-1", unready}, {"node-1", ending}},
			[]string{"10.244.0.1:80", "10.244.0.2:80"}, []string{"10.244.0.1:80", "10.244.0.2:80", "10.244.0.3:80", "10.244.0.4:80"}},
		{"on a dead node", []pod{{"node-1", ready}, {"dead", ready}, {"dead", draining}}, []string{"10.244.0.1:80"}, []string{"10.244.0.1:80"}},
		{"on dead nodes only", []pod{{"dead", ready}, {"dead", ready}}, []string{"10.244.0.1:80", "10.244.0.2:80"}, []string{"10.244.0.1:80", "10.244.0.2:80"}},
	} {
		for proto, want := range map[corev1.Protocol][]string{corev1.ProtocolUDP: tc.udp, corev1.ProtocolSCTP: tc.udp, corev1.ProtocolTCP: tc.tcp} {
			svc := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80, Protocol: proto}}}}
			sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](80), Protocol: &proto}}}
			for i, p := range tc.pods {
				a := netip.AddrFrom4([4]byte{10, 244, 0, byte(i + 1)})
				sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: ptr.To(p.node), Conditions: p.is})
			}
			out, problems := model.ComputeService(model.Input{Service: svc, Slices: []*discoveryv1.EndpointSlice{sl}}, model.Node{Name: "node-1", DeadNodes: []string{"dead"}})
			if len(problems) > 0 || len(out.Frontends) != 1 {
				t.Fatalf("%s: %v, %v", tc.name, out, problems)
			}
			var got []string
			for _, ap := range out.Frontends[0].Serving {
				got = append(got, ap.String())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", proto, tc.name, diff)
			}
		}
	}
}
