// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// history is a Service and its Pods as they change at random.
type history struct {
	rng     *rand.Rand
	service *corev1.Service
	pods    []*corev1.Pod // replaced, never changed
	nodes   map[string]*corev1.Node
	next    int
	clock   time.Time
	busy    int // changes a step, at most
}

func newHistory(seed uint64) *history {
	h := &history{
		rng:   rand.New(rand.NewPCG(seed, 0)),
		nodes: map[string]*corev1.Node{},
		clock: time.Unix(1_700_000_000, 0),
	}
	h.busy = 1 + h.rng.IntN(12)
	for i := range 3 + h.rng.IntN(4) {
		name := fmt.Sprintf("node-%d", i)
		h.nodes[name] = testNode(name, fmt.Sprintf("zone-%d", i%3))
	}
	h.service = h.newService()
	return h
}

func testNode(name, zone string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")},
			Conditions:  []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
}

func (h *history) newService() *corev1.Service {
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "web", UID: "service-uid",
			CreationTimestamp: metav1.NewTime(h.clock), Labels: map[string]string{"team": "blue"},
		},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Selector: map[string]string{"app": "web"}},
	}
	service.Spec.IPFamilies = pick(h.rng, families)
	service.Spec.Ports = h.somePorts()
	if h.rng.IntN(4) == 0 {
		service.Spec.ClusterIP = corev1.ClusterIPNone
		if h.rng.IntN(3) == 0 {
			service.Spec.Ports = nil
		}
	}
	return service
}

var families = [][]corev1.IPFamily{{"IPv4"}, {"IPv6"}, {"IPv4", "IPv6"}, {"IPv6", "IPv4"}}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

func (h *history) somePorts() []corev1.ServicePort {
	choices := []corev1.ServicePort{
		{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)},
		{Name: "web", Port: 81, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")},
		{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromString("dns"), AppProtocol: new("dns")},
		{Name: "absent", Port: 99, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("absent")},
	}
	h.rng.Shuffle(len(choices), func(i, j int) { choices[i], choices[j] = choices[j], choices[i] })
	return choices[:1+h.rng.IntN(len(choices))]
}

// step changes a few things at once, as between two passes of a controller.
func (h *history) step() {
	for range 1 + h.rng.IntN(h.busy) {
		h.clock = h.clock.Add(time.Second)
		switch n := h.rng.IntN(40); {
		case n < 14 || len(h.pods) == 0:
			h.pods = append(slices.Clone(h.pods), h.newPod())
		case n < 20:
			i := h.rng.IntN(len(h.pods))
			h.pods = slices.Delete(slices.Clone(h.pods), i, i+1)
		case n < 38:
			h.changePod()
		case n < 39:
			h.changeService()
		default:
			h.changeNode()
		}
	}
}

func (h *history) newPod() *corev1.Pod {
	h.next++
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprintf("web-%d", h.next), UID: types.UID(fmt.Sprintf("uid-%d", h.next)),
			Labels: map[string]string{"app": "web"},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%d", h.rng.IntN(len(h.nodes)+1)),
			Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{
				{Name: "web", ContainerPort: 8000 + int32(h.rng.IntN(3)), Protocol: corev1.ProtocolTCP},
			}}},
			InitContainers: []corev1.Container{{Name: "sidecar", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
				Ports: []corev1.ContainerPort{{Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	if h.rng.IntN(4) == 0 {
		pod.Spec.Hostname, pod.Spec.Subdomain = fmt.Sprintf("host-%d", h.next), "web"
	}
	if h.rng.IntN(3) > 0 {
		h.run(pod)
	}
	return pod
}

// run gives the Pod addresses, one or of both families.
func (h *history) run(pod *corev1.Pod) {
	pod.Status.Phase = corev1.PodRunning
	v4 := corev1.PodIP{IP: fmt.Sprintf("10.244.%d.%d", h.next/250, h.next%250+1)}
	v6 := corev1.PodIP{IP: fmt.Sprintf("fd00:10:244::%x", h.next)}
	pod.Status.PodIPs = pick(h.rng, [][]corev1.PodIP{{v4}, {v4, v6}, {v4, v6}, {v6, v4}})
	pod.Status.PodIP = pod.Status.PodIPs[0].IP
	h.setReady(pod, h.rng.IntN(2) == 0)
}

func (h *history) setReady(pod *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(h.clock)}}
}

func (h *history) changePod() {
	i := h.rng.IntN(len(h.pods))
	pod := h.pods[i].DeepCopy()
	switch n := h.rng.IntN(12); {
	case pod.Status.Phase == corev1.PodPending:
		h.run(pod)
	case n < 9:
		h.setReady(pod, pod.Status.Conditions[0].Status != corev1.ConditionTrue)
	case n < 11:
		pod.DeletionTimestamp = &metav1.Time{Time: h.clock}
	default:
		pod.Status.Phase = pick(h.rng, []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed})
	}
	h.pods = slices.Clone(h.pods)
	h.pods[i] = pod
}

func (h *history) changeService() {
	service := h.service.DeepCopy()
	switch h.rng.IntN(7) {
	case 0:
		service.Spec.PublishNotReadyAddresses = !service.Spec.PublishNotReadyAddresses
	case 1:
		service.Labels["team"] = pick(h.rng, []string{"blue", "red"})
	case 2:
		service.Spec.IPFamilies = pick(h.rng, families)
	case 3:
		if len(service.Spec.Ports) > 0 {
			service.Spec.Ports = h.somePorts()
		}
	case 4, 5:
		service.Spec.TrafficDistribution = pick(h.rng, []*string{
			nil, new("PreferClose"), new("PreferSameZone"), new("PreferSameNode"), new("Unknown"),
		})
	case 6:
		service.Annotations = pick(h.rng, []map[string]string{nil, {corev1.AnnotationTopologyMode: "Auto"}})
	}
	h.service = service
}

// changeNode moves a Node to another zone, or lets it come or go.
func (h *history) changeNode() {
	nodes := map[string]*corev1.Node{}
	for name, node := range h.nodes {
		nodes[name] = node
	}
	name := fmt.Sprintf("node-%d", h.rng.IntN(7))
	if _, there := nodes[name]; there && len(nodes) > 2 {
		delete(nodes, name)
	} else {
		nodes[name] = testNode(name, fmt.Sprintf("zone-%d", h.rng.IntN(3)))
	}
	h.nodes = nodes
}
