// SPDX-License-Identifier: Apache-2.0

package proxybench

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
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

// pod is a Pod of Service i as a Deployment makes them: a container with probes and
// some environment, a token's volume, an owner, and a status that a kubelet has
// written.
func pod(i, e int) *corev1.Pod {
	app := ServiceName(i)
	ip := EndpointsOf(i)[e].String()
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: meta(fmt.Sprintf("%s-6d4cf56db6-%d", app, e))}
	p.GenerateName = app + "-6d4cf56db6-"
	p.Labels = map[string]string{"app": app, "pod-template-hash": "6d4cf56db6", "app.kubernetes.io/part-of": "shop"}
	p.Annotations = map[string]string{"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z", "prometheus.io/scrape": "true"}
	p.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "apps/v1", Kind: "ReplicaSet", Name: app + "-6d4cf56db6", UID: p.UID, Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(true),
	}}
	for _, manager := range []string{"kube-controller-manager", "kubelet"} {
		p.ManagedFields = append(p.ManagedFields, metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:pod-template-hash":{}},"f:ownerReferences":{".":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"server\"}":{".":{},"f:env":{".":{}},"f:image":{},"f:name":{},"f:ports":{".":{}},"f:resources":{".":{},"f:limits":{},"f:requests":{}}}},"f:dnsPolicy":{},"f:restartPolicy":{}}}`)},
		})
	}
	probe := &corev1.Probe{PeriodSeconds: 10, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
	probe.HTTPGet = &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(EndpointPort), Scheme: corev1.URISchemeHTTP}
	server := corev1.Container{
		Name: "server", Image: "registry.example.com/shop/server:1.2.3", ImagePullPolicy: corev1.PullIfNotPresent,
		Ports:         []corev1.ContainerPort{{Name: "http", ContainerPort: EndpointPort, Protocol: corev1.ProtocolTCP}},
		LivenessProbe: probe, ReadinessProbe: probe,
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: "kube-api-access", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
	}
	for k := range 8 {
		server.Env = append(server.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_%d", k), Value: fmt.Sprintf("value-%d-of-%s", k, app)})
	}
	p.Spec = corev1.PodSpec{
		NodeName: nodeName(i + e), Containers: []corev1.Container{server}, ServiceAccountName: "default",
		RestartPolicy: corev1.RestartPolicyAlways, DNSPolicy: corev1.DNSClusterFirst, SchedulerName: "default-scheduler",
		Volumes: []corev1.Volume{{Name: "kube-api-access", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
	}
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, HostIP: NodeAddress, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "server", Ready: true, Started: ptr.To(true), Image: server.Image,
			ImageID: "registry.example.com/shop/server@sha256:" + strings.Repeat("ab", 32), ContainerID: "containerd://" + strings.Repeat("cd", 32),
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: p.CreationTimestamp}},
		}},
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: p.CreationTimestamp})
	}
	return p
}

// nodes is how many nodes Pods are on.
const nodes = 100

// nodeName is the name of one of them; the first is NodeName.
func nodeName(i int) string { return "node-" + strconv.Itoa(1+i%nodes) }

func node(name string) *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: meta(name),
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: NodeAddress}}},
	}
	n.Namespace = ""
	return n
}
