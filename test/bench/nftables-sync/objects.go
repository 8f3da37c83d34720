// SPDX-License-Identifier: Apache-2.0

package main

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

const (
	nodeName     = "node-1"
	nodeAddress  = "192.0.2.11"
	endpointPort = 8080
	namespace    = "default"
)

func serviceName(i int) string { return fmt.Sprintf("svc-%d", i) }

func clusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 96, byte((i + 16) >> 8), byte(i + 16)})
}

// endpointAddr gives the address of endpoint number k of all.
func endpointAddr(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + k>>16), byte(k >> 8), byte(k)})
}

// spareAddr gives addresses that no endpoint has at first.
func spareAddr(k int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, byte(16 + k>>16), byte(k >> 8), byte(k)})
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: types.UID("00000000-0000-4000-8000-" + fmt.Sprintf("%012x", hash(name))),
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

func service(i int) *corev1.Service {
	ip := clusterIP(i).String()
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: meta(serviceName(i)),
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicySingleStack),
			InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyCluster), SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
}

func slice(i int, addrs ...netip.Addr) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  meta(serviceName(i)),
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("http"), Port: ptr.To[int32](endpointPort), Protocol: ptr.To(corev1.ProtocolTCP),
		}},
	}
	sl.Labels = map[string]string{discoveryv1.LabelServiceName: serviceName(i)}
	for _, a := range addrs {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a.String()}, NodeName: ptr.To("node-2"),
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true), Serving: ptr.To(true), Terminating: ptr.To(false)},
		})
	}
	return sl
}

// endpointsOf gives the addresses of Service i's endpoints.
func endpointsOf(i int) []netip.Addr {
	addrs := make([]netip.Addr, endpointsEach)
	for e := range addrs {
		addrs[e] = endpointAddr(i*endpointsEach + e)
	}
	return addrs
}

func node() *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: meta(nodeName),
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeAddress}}},
	}
	n.Namespace = ""
	return n
}
