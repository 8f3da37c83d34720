// SPDX-License-Identifier: Apache-2.0

package proxybench

import (
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// Names and addresses of what is made.
const (
	NodeName     = "node-1"
	NodeAddress  = "192.0.2.11"
	EndpointPort = 8080
	Namespace    = "default"

	// EndpointsEach is how many endpoints a Service has.
	EndpointsEach = 5
)

// ServiceName is the name of Service i and of its slice.
func ServiceName(i int) string { return fmt.Sprintf("svc-%d", i) }

// ClusterIP is the address of Service i.
func ClusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, byte((i + 16) >> 8), byte(i + 16)})
}

// FrontendKey is a ClusterIP, port 80 over TCP, as a map of nf_tables has it.
func FrontendKey(a netip.Addr) []byte { return append(a.AsSlice(), 6, 0, 0, 0, 0, 80, 0, 0) }

// endpointAddr gives the address of endpoint number k of all.
func endpointAddr(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + k>>16), byte(k >> 8), byte(k)})
}

// SpareAddr gives addresses that no endpoint has at first.
func SpareAddr(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, byte(16 + k>>16), byte(k >> 8), byte(k)})
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: Namespace, Name: name, UID: types.UID("00000000-0000-4000-8000-" + fmt.Sprintf("%012x", hash(name))),
		CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0)),
	}
}

func hash(s string) uint64 {
	h := uint64(1469598103934665603)
	for _, c := range []byte(s) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h & 0xffffffffffff
}

// Service is Service i, with a ClusterIP and port 80.
func Service(i int) *corev1.Service {
	ip := ClusterIP(i).String()
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta(ServiceName(i)),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicySingleStack),
			InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster), SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

// Slice has the endpoints of Service i.
func Slice(i int, addrs ...netip.Addr) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  meta(ServiceName(i)),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("http"), Port: ptr.To[int32](EndpointPort), Protocol: ptr.To(corev1.ProtocolTCP),
		}},
	}
	sl.Labels = map[string]string{discoveryv1.LabelServiceName: ServiceName(i)}
	for _, a := range addrs {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.String()}, NodeName: ptr.To("node-2"),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
		})
	}
	return sl
}

// EndpointsOf gives the addresses of Service i's endpoints.
func EndpointsOf(i int) []netip.Addr {
	addrs := make([]netip.Addr, EndpointsEach)
	for e := range addrs {
		addrs[e] = endpointAddr(i*EndpointsEach + e)
	}
	return addrs
}

func node() *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: meta(NodeName),
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: NodeAddress}}},
	}
	n.Namespace = ""
	return n
}
