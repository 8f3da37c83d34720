// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// testService returns a dual-stack Service "web" with one numeric port.
func testService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "service-uid",
			CreationTimestamp: metav1.Unix(1_000, 0),
			Labels:            map[string]string{"team": "blue"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP:  "10.96.0.10",
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Selector:   map[string]string{"app": "web"},
			Ports:      []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
		},
	}
}

// testPod returns a ready dual-stack Pod of "web" on node n%3.
func testPod(n int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: fmt.Sprintf("web-%04d", n), UID: types.UID(fmt.Sprintf("pod-uid-%d", n)),
			Labels: map[string]string{"app": "web"},
		},
		Spec: corev1.PodSpec{
			NodeName:   fmt.Sprintf("node-%d", n%3+1),
			Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}},
		},
		Status: corev1.PodStatus{
			Phase:  corev1.PodRunning,
			PodIP:  fmt.Sprintf("10.244.%d.%d", n/250, n%250+1),
			PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.244.%d.%d", n/250, n%250+1)}, {IP: fmt.Sprintf("fd00:10:244::%x", n+1)}},
			Conditions: []corev1.PodCondition{{
				Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Unix(2_000, 0),
			}},
		},
	}
}

func testPods(n int) []*corev1.Pod {
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, testPod(i))
	}
	return pods
}

func setReady(pod *corev1.Pod, ready bool) {
	pod.Status.Conditions[0].Status = corev1.ConditionFalse
	if ready {
		pod.Status.Conditions[0].Status = corev1.ConditionTrue
	}
}

// testNodes knows node-1 to node-3, one in each of the zones a, b and c.
func testNodes(name string) (Node, bool) {
	zones := map[string]string{"node-1": "a", "node-2": "b", "node-3": "c"}
	zone, ok := zones[name]
	return Node{Name: name, Zone: zone, Ready: true, MilliCPU: 4000}, ok
}

// apply carries the plan out on a copy of the slices, as the API server would.
func apply(t *testing.T, existing []*discoveryv1.EndpointSlice, plan Plan) []*discoveryv1.EndpointSlice {
	t.Helper()
	byName := map[string]*discoveryv1.EndpointSlice{}
	for _, slice := range existing {
		byName[slice.Name] = slice
	}
	for _, slice := range plan.Create {
		if slice.Name == "" || byName[slice.Name] != nil {
			t.Fatalf("create of %q: name is missing or taken", slice.Name)
		}
		created := slice.DeepCopy()
		created.UID, created.ResourceVersion = types.UID("uid-of-"+slice.Name), "1"
		byName[slice.Name] = created
	}
	for _, slice := range slices.Concat(plan.Update, plan.Shrink) {
		old := byName[slice.Name]
		if old == nil || old.UID != slice.UID || old.ResourceVersion != slice.ResourceVersion {
			t.Fatalf("update of %q: not based on what exists", slice.Name)
		}
		if old.AddressType != slice.AddressType {
			t.Fatalf("update of %q changes the immutable address type", slice.Name)
		}
		updated := slice.DeepCopy()
		updated.ResourceVersion = old.ResourceVersion + "1"
		byName[slice.Name] = updated
	}
	for _, slice := range plan.Delete {
		if byName[slice.Name] == nil {
			t.Fatalf("delete of %q, which does not exist", slice.Name)
		}
		delete(byName, slice.Name)
	}
	var result []*discoveryv1.EndpointSlice
	for _, slice := range byName {
		result = append(result, slice)
	}
	slices.SortFunc(result, func(a, b *discoveryv1.EndpointSlice) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return result
}

// sizes returns the number of endpoints of each slice of a family, largest
// first.
func sizes(list []*discoveryv1.EndpointSlice, family discoveryv1.AddressType) []int {
	var result []int
	for _, slice := range list {
		if slice.AddressType == family {
			result = append(result, len(slice.Endpoints))
		}
	}
	slices.SortFunc(result, func(a, b int) int { return b - a })
	return result
}

// endpointsByName returns a family's endpoints by the name of their Pod, with
// their port lists; it fails the test if one Pod is there twice.
func endpointsByName(t *testing.T, list []*discoveryv1.EndpointSlice, family discoveryv1.AddressType) map[string]discoveryv1.Endpoint {
	t.Helper()
	result := map[string]discoveryv1.Endpoint{}
	for _, slice := range list {
		if slice.AddressType != family {
			continue
		}
		for _, endpoint := range slice.Endpoints {
			if _, twice := result[endpoint.TargetRef.Name]; twice {
				t.Fatalf("endpoint %s is in two places", endpoint.TargetRef.Name)
			}
			result[endpoint.TargetRef.Name] = endpoint
		}
	}
	return result
}

// world is a Service with Pods that change at random.
type world struct {
	rng     *rand.Rand
	service *corev1.Service
	pods    []*corev1.Pod
	nextPod int
	clock   time.Time
}

func newWorld(seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), service: testService(), clock: time.Unix(3_000, 0)}
	w.service.Spec.Ports[0].TargetPort = intstr.FromString("web")
	return w
}

// step changes something at random, up to a few things immediately.
func (w *world) step() {
	for range 1 + w.rng.IntN(8) {
		w.clock = w.clock.Add(time.Second)
		w.change()
	}
}

func (w *world) change() {
	switch n := w.rng.IntN(20); {
	case n < 7 || len(w.pods) == 0:
		pod := testPod(w.nextPod)
		w.nextPod++
		pod.Spec.Containers[0].Ports[0].ContainerPort = 8080 + int32(w.rng.IntN(2))
		setReady(pod, w.rng.IntN(2) == 0)
		if w.rng.IntN(5) == 0 {
			pod.Status.PodIPs = pod.Status.PodIPs[:1]
		}
		if w.rng.IntN(10) == 0 {
			pod.Spec.NodeName = "node-gone"
		}
		w.pods = append(w.pods, pod)
	case n < 12:
		i := w.rng.IntN(len(w.pods))
		w.pods = slices.Delete(slices.Clone(w.pods), i, i+1)
	case n < 17:
		i := w.rng.IntN(len(w.pods))
		pod := w.pods[i].DeepCopy()
		setReady(pod, !Ready(pod))
		w.replace(i, pod)
	case n < 18:
		i := w.rng.IntN(len(w.pods))
		pod := w.pods[i].DeepCopy()
		pod.DeletionTimestamp = &metav1.Time{Time: w.clock}
		w.replace(i, pod)
	default:
		w.changeService()
	}
}

func (w *world) replace(i int, pod *corev1.Pod) {
	w.pods = slices.Clone(w.pods)
	w.pods[i] = pod
}

func (w *world) changeService() {
	w.service = w.service.DeepCopy()
	switch w.rng.IntN(6) {
	case 0:
		w.service.Spec.PublishNotReadyAddresses = !w.service.Spec.PublishNotReadyAddresses
	case 1:
		w.service.Labels["team"] = []string{"blue", "red"}[w.rng.IntN(2)]
	case 2:
		w.service.Spec.IPFamilies = [][]corev1.IPFamily{{"IPv4"}, {"IPv4", "IPv6"}}[w.rng.IntN(2)]
	case 3:
		w.service.Spec.Ports[0].Name = []string{"http", "web"}[w.rng.IntN(2)]
	case 4:
		w.service.Spec.TrafficDistribution = []*string{nil, new("PreferSameZone"), new("PreferSameNode")}[w.rng.IntN(3)]
	case 5:
		w.service.Annotations = []map[string]string{nil, {corev1.AnnotationTopologyMode: "Auto"}}[w.rng.IntN(2)]
	}
}

func (w *world) input(existing []*discoveryv1.EndpointSlice, limit int) Input {
	return Input{
		Service: w.service, Pods: w.pods, Slices: existing, Nodes: testNodes,
		Shares:      Shares{ByZone: map[string]float64{"a": 0.5, "b": 0.25, "c": 0.25}},
		TriggerTime: w.clock, MaxEndpoints: limit,
	}
}

// shuffled returns the input with its lists in another order.
func shuffled(in Input, rng *rand.Rand) Input {
	in.Pods, in.Slices = slices.Clone(in.Pods), slices.Clone(in.Slices)
	rng.Shuffle(len(in.Pods), func(i, j int) { in.Pods[i], in.Pods[j] = in.Pods[j], in.Pods[i] })
	rng.Shuffle(len(in.Slices), func(i, j int) { in.Slices[i], in.Slices[j] = in.Slices[j], in.Slices[i] })
	return in
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if reflect.DeepEqual(want, got) {
		return // by far the most common case, and cmp is slow
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
