// SPDX-License-Identifier: Apache-2.0

package model_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/modeltest"
)

// What API servers before 1.36 stored means what it meant to those who forwarded
// then (kubernetes#100895): it equals its canonical form.
func TestStoredAddresses(t *testing.T) {
	type texts struct{ clusterIP, external, ingress, sources, endpoint string }
	compute := func(v texts, fam discoveryv1.AddressType) *model.Service {
		t.Helper()
		svc := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ClusterIP: v.clusterIP, ClusterIPs: []string{v.clusterIP},
				ExternalIPs: []string{v.external}, LoadBalancerSourceRanges: []string{v.sources},
				Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}},
			},
			Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: v.ingress}}}},
		}
		sl := &discoveryv1.EndpointSlice{
			AddressType: fam, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](8080)}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{v.endpoint}}},
		}
		node := modeltest.New(1).Node
		for _, r := range []string{"198.51.100.0/24", "2001:db8:2::/64"} {
			node.ExternalIPRanges = append(node.ExternalIPRanges, netip.MustParsePrefix(r))
		}
		out, problems := model.ComputeService(model.Input{Service: svc, Slices: []*discoveryv1.EndpointSlice{sl}}, node)
		if len(problems) > 0 {
			t.Errorf("%+v: %v", v, problems)
		}
		return out
	}
	v4 := compute(texts{"10.96.17.9", "198.51.100.7", "203.0.113.10", "192.0.2.0/24", "10.244.1.2"}, discoveryv1.AddressTypeIPv4)
	v6 := compute(texts{"fd00:10:96::9", "2001:db8:2::7", "2001:db8:1::10", "2001:db8::/32", "fd00:10:244:1::2"}, discoveryv1.AddressTypeIPv6)
	if len(v4.Frontends) != 3 || len(v6.Frontends) != 3 || len(v4.Frontends[0].Inside.Endpoints) != 1 {
		t.Fatalf("%+v, %+v", v4, v6)
	}
	for _, tc := range []struct {
		name  string
		texts texts
		fam   discoveryv1.AddressType
		want  *model.Service
	}{
		{"leading zeros", texts{"10.96.017.009", "198.051.100.007", "203.000.113.010", "192.000.002.000/24", "10.244.001.002"}, discoveryv1.AddressTypeIPv4, v4},
		{"IPv4-mapped", texts{"::ffff:10.96.17.9", "::ffff:198.51.100.7", "::ffff:203.0.113.10", "::ffff:192.0.2.0/120", "::ffff:10.244.1.2"}, discoveryv1.AddressTypeIPv4, v4},
		{"bits behind the prefix", texts{"10.96.17.9", "198.51.100.7", "203.0.113.10", "192.0.2.33/24", "10.244.1.2"}, discoveryv1.AddressTypeIPv4, v4},
		{"long form", texts{"FD00:0010:0096:0:0:0:0:0009", "2001:0db8:0002::0007", "2001:0DB8:1::10", "2001:0db8:0000::/032", "fd00:0010:0244:0001::0002"}, discoveryv1.AddressTypeIPv6, v6},
	} {
		if diff := cmp.Diff(tc.want, compute(tc.texts, tc.fam), compare); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}
