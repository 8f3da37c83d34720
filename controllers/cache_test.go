// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-lb/causeway/internal/endpointslice"
)

// wholePod is a Pod with all that endpoints can depend on, and much that they
// can't.
func wholePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "spec", Name: "web-0", UID: "pod", ResourceVersion: "7", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{"note": "long"}, Finalizers: []string{"example.com/hold"},
			DeletionTimestamp: new(metav1.Unix(2_000, 0)), ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}},
		},
		Spec: corev1.PodSpec{
			NodeName: "node-1", Hostname: "first", Subdomain: "web",
			Containers: []corev1.Container{
				{Name: "main", Image: "example.com/main", Env: []corev1.EnvVar{{Name: "A", Value: "B"}},
					Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}, {ContainerPort: 1}}},
				{Name: "helper", Image: "example.com/helper"},
			},
			InitContainers: []corev1.Container{{Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
				Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9100, Protocol: corev1.ProtocolTCP}}}},
			Volumes: []corev1.Volume{{Name: "data"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.244.0.1", PodIPs: []corev1.PodIP{{IP: "10.244.0.1"}, {IP: "fd00:10:244::1"}},
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Unix(1_000, 0), Message: "long"},
			},
			ContainerStatuses: []corev1.ContainerStatus{{Name: "main", Image: "example.com/main"}},
		},
	}
}

var _ = Describe("what the cache keeps", func() {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "spec", Name: "web", UID: "service"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Selector: map[string]string{"app": "web"}, PublishNotReadyAddresses: true,
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")},
				{Name: "metrics", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("metrics")},
			},
		},
	}
	compute := func(pod *corev1.Pod) endpointslice.Plan {
		return endpointslice.Compute(endpointslice.Input{
			Service: service, Pods: []*corev1.Pod{pod},
			Nodes: func(name string) (endpointslice.Node, bool) { return endpointslice.Node{Name: name, Zone: "a"}, true },
		})
	}

	It("is all of a Pod that endpoints depend on, and little else", func() {
		whole := wholePod()
		object, err := stripPod(wholePod())
		Expect(err).NotTo(HaveOccurred())
		stripped := object.(*corev1.Pod)
		Expect(compute(stripped)).To(Equal(compute(whole)))
		Expect(compute(stripped).Create).To(HaveLen(2))
		Expect(compute(stripped).Create[0].Ports).To(HaveLen(2))
		Expect(endpointslice.ComputeEndpoints(service, []*corev1.Pod{stripped}, nil)).
			To(Equal(endpointslice.ComputeEndpoints(service, []*corev1.Pod{whole}, nil)))
		Expect(stripped.ResourceVersion).To(Equal("7"))
		Expect(stripped.Annotations).To(BeEmpty())
		Expect(stripped.ManagedFields).To(BeEmpty())
		Expect(stripped.Spec.Volumes).To(BeEmpty())
		Expect(stripped.Spec.Containers).To(HaveLen(1), "containers without named ports are of no use")
		Expect(stripped.Status.ContainerStatuses).To(BeEmpty())
	})

	It("is all of a Node that zones and their shares depend on", func() {
		node := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{corev1.LabelTopologyZone: "a"},
				ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}},
			Status: corev1.NodeStatus{
				Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
				Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
				Images:      []corev1.ContainerImage{{Names: []string{"example.com/main"}}},
			},
		}
		whole := endpointslice.NodeOf(node)
		Expect(whole).To(Equal(endpointslice.Node{Name: "node-1", Zone: "a", Ready: true, MilliCPU: 4000}))
		object, err := stripNode(node)
		Expect(err).NotTo(HaveOccurred())
		Expect(endpointslice.NodeOf(object.(*corev1.Node))).To(Equal(whole))
		Expect(node.Status.Images).To(BeEmpty())
		Expect(node.ManagedFields).To(BeEmpty())
	})

	It("passes on what is neither", func() {
		Expect(stripPod("something")).To(Equal("something"))
		Expect(stripNode("something")).To(Equal("something"))
	})
})
