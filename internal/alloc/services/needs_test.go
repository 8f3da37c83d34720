// SPDX-License-Identifier: Apache-2.0

package services

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const (
	v4 = corev1.IPv4Protocol
	v6 = corev1.IPv6Protocol
)

// service makes a Service with one port, as the API server hands it to webhooks.
func service(changes ...func(*corev1.ServiceSpec)) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: corev1.ServiceSpec{
			Type:  corev1.ServiceTypeClusterIP,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, change := range changes {
		change(&svc.Spec)
	}
	return svc
}

func ofType(t corev1.ServiceType) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.Type = t }
}

func ips(addresses ...string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.ClusterIPs = addresses
		s.ClusterIP = addresses[0]
		for _, a := range addresses {
			if addr, err := netip.ParseAddr(a); err == nil && addr.Is4() {
				s.IPFamilies = append(s.IPFamilies, v4)
			} else if err == nil {
				s.IPFamilies = append(s.IPFamilies, v6)
			}
		}
	}
}

func dual(p corev1.IPFamilyPolicy) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.IPFamilyPolicy = ptr.To(p) }
}

func nodePorts(numbers ...int32) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) {
		s.Type = corev1.ServiceTypeNodePort
		s.Ports = nil
		for i, n := range numbers {
			s.Ports = append(s.Ports, corev1.ServicePort{Name: string(rune('a' + i)), Port: int32(80 + i), NodePort: n})
		}
	}
}

func TestNeedsOf(t *testing.T) {
	verifiable := ips("10.96.0.5")
	any4, any6 := AddressNeed{0, v4, netip.Addr{}}, AddressNeed{1, v6, netip.Addr{}}
	for _, tc := range []struct {
		name     string
		svc, old *corev1.Service
		want     Needs
	}{
		{"created", service(), nil, Needs{Addresses: []AddressNeed{any4}}},
		{"created headless", service(ips("None")), nil, Needs{}},
		{"created ExternalName", service(ofType(corev1.ServiceTypeExternalName)), nil, Needs{}},
		{"created with an address", service(verifiable), nil, Needs{Addresses: []AddressNeed{{0, v4, netip.MustParseAddr("10.96.0.5")}}}},
		{"created by a client that knows one address", service(func(s *corev1.ServiceSpec) { s.ClusterIP = "10.96.0.5" }), nil,
			Needs{Addresses: []AddressNeed{{0, v4, netip.MustParseAddr("10.96.0.5")}}}},
		{"created with an address that has leading zeros", service(ips("10.96.000.005")), nil, Needs{Addresses: []AddressNeed{{0, v4, netip.MustParseAddr("10.96.0.5")}}}},
		{"created with nonsense for an address", service(ips("x")), nil, Needs{}},
		{"created for IPv6", service(func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{v6} }), nil, Needs{Addresses: []AddressNeed{{0, v6, netip.Addr{}}}}},
		{"created for both families", service(dual(corev1.IPFamilyPolicyRequireDualStack)), nil, Needs{Addresses: []AddressNeed{any4, any6}}},
		{"created for both families, IPv6 first", service(dual(corev1.IPFamilyPolicyPreferDualStack), func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{v6} }), nil,
			Needs{Addresses: []AddressNeed{{0, v6, netip.Addr{}}, {1, v4, netip.Addr{}}}}},
		{"unchanged", service(verifiable), service(verifiable), Needs{}},
		{"replaced without its address", service(), service(verifiable), Needs{}},
		{"upgraded", service(verifiable, dual(corev1.IPFamilyPolicyRequireDualStack)), service(verifiable, dual(corev1.IPFamilyPolicySingleStack)), Needs{Addresses: []AddressNeed{any6}}},
		{"PreferDualStack stays single", service(verifiable, dual(corev1.IPFamilyPolicyPreferDualStack)), service(verifiable, dual(corev1.IPFamilyPolicyPreferDualStack)), Needs{}},
		{"no longer ExternalName", service(), service(ofType(corev1.ServiceTypeExternalName)), Needs{Addresses: []AddressNeed{any4}}},
		{"becomes ExternalName", service(ofType(corev1.ServiceTypeExternalName)), service(verifiable), Needs{}},

		{"NodePort", service(verifiable, nodePorts(0, 0)), service(verifiable), Needs{Ports: []PortNeed{{Indexes: []int{0}}, {Indexes: []int{1}}}}},
		{"NodePort asked for", service(verifiable, nodePorts(30080)), service(verifiable), Needs{Ports: []PortNeed{{Indexes: []int{0}, Asked: 30080}}}},
		{"NodePort kept", service(verifiable, nodePorts(30080)), service(verifiable, nodePorts(30080)), Needs{}},
		{"NodePort carried over", service(verifiable, nodePorts(0)), service(verifiable, nodePorts(30080)), Needs{}},
		{"port added", service(verifiable, nodePorts(30080, 0)), service(verifiable, nodePorts(30080)), Needs{Ports: []PortNeed{{Indexes: []int{1}}}}},
		{"port added, none repeated", service(verifiable, nodePorts(0, 0)), service(verifiable, nodePorts(30080)), Needs{Ports: []PortNeed{{Indexes: []int{1}}}}},
		{"port moved to another name", service(verifiable, nodePorts(0, 30080)), service(verifiable, nodePorts(30080)), Needs{Ports: []PortNeed{{Indexes: []int{0}}}}},
		{"port changed", service(verifiable, nodePorts(30081)), service(verifiable, nodePorts(30080)), Needs{Ports: []PortNeed{{Indexes: []int{0}, Asked: 30081}}}},
		{"TCP and UDP share", service(verifiable, nodePorts(0, 0), func(s *corev1.ServiceSpec) { s.Ports[1].Port = 80 }), service(verifiable), Needs{Ports: []PortNeed{{Indexes: []int{0, 1}}}}},
		{"UDP joins TCP", service(verifiable, nodePorts(0, 0), func(s *corev1.ServiceSpec) { s.Ports[1].Port = 80 }), service(verifiable, nodePorts(30080)),
			Needs{Ports: []PortNeed{{Indexes: []int{1}, Asked: 30080}}}},
		{"UDP shares what TCP asks for", service(verifiable, nodePorts(30080, 0), func(s *corev1.ServiceSpec) { s.Ports[1].Port = 80 }), service(verifiable),
			Needs{Ports: []PortNeed{{Indexes: []int{0, 1}, Asked: 30080}}}},
		{"LoadBalancer keeps the NodePort's", service(verifiable, nodePorts(0), ofType(corev1.ServiceTypeLoadBalancer)), service(verifiable, nodePorts(30080)), Needs{}},
		{"LoadBalancer without NodePorts", service(verifiable, ofType(corev1.ServiceTypeLoadBalancer), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr.To(false) }), service(verifiable), Needs{}},
		{"LoadBalancer without NodePorts, but asked for", service(verifiable, nodePorts(30080, 0), ofType(corev1.ServiceTypeLoadBalancer), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr.To(false) }), service(verifiable),
			Needs{Ports: []PortNeed{{Indexes: []int{0}, Asked: 30080}}}},
		{"NodePort once asked for, kept when all get one", service(verifiable, nodePorts(0)), service(verifiable, nodePorts(30080), ofType(corev1.ServiceTypeLoadBalancer), func(s *corev1.ServiceSpec) { s.AllocateLoadBalancerNodePorts = ptr.To(false) }), Needs{}},
		{"policy Local", service(verifiable, nodePorts(30080), ofType(corev1.ServiceTypeLoadBalancer), func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }), service(verifiable, nodePorts(30080)),
			Needs{Ports: []PortNeed{{}}}},
		{"back to ClusterIP", service(verifiable), service(verifiable, nodePorts(30080)), Needs{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc, old := tc.svc.DeepCopy(), tc.old.DeepCopy()
			got := NeedsOf(svc, old, []corev1.IPFamily{v4, v6})
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				t.Errorf("needs (-want +got):\n%s", diff)
			}
			if !cmp.Equal(svc, tc.svc) || !cmp.Equal(old, tc.old) {
				t.Error("an argument was changed")
			}
		})
	}
}
