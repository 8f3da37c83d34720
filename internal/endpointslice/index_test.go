// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// model is the plainest thing that an Index could be: lists that are walked.
type model struct {
	services map[types.NamespacedName]*corev1.Service
	pods     map[types.NamespacedName]*corev1.Pod
	nodes    map[string]Node
	slices   map[types.NamespacedName]*discoveryv1.EndpointSlice
}

// state returns everything that a Service's slices follow from, as text.
func (m *model) state(name types.NamespacedName) string {
	service := m.services[name]
	text := ""
	for _, key := range slices.SortedFunc(maps.Keys(m.slices), compareNames) {
		if slice := m.slices[key]; key.Namespace == name.Namespace && slice.Labels[discoveryv1.LabelServiceName] == name.Name {
			text += "slice " + slice.Name + slice.ResourceVersion + "\n"
		}
	}
	if service == nil {
		return text
	}
	text += fmt.Sprintln("service", service.UID, service.Spec.Selector, service.Spec.PublishNotReadyAddresses, service.Labels)
	for _, key := range slices.SortedFunc(maps.Keys(m.pods), compareNames) {
		pod := m.pods[key]
		if key.Namespace != name.Namespace || !Selects(service.Spec.Selector, pod.Labels) || !Published(pod) {
			continue
		}
		node, known := m.nodes[pod.Spec.NodeName]
		text += fmt.Sprintln("pod", pod.Name, pod.UID, Ready(pod), pod.Status.PodIPs, node.Zone, known, pod.DeletionTimestamp != nil)
	}
	return text
}

func compareNames(a, b types.NamespacedName) int {
	if a.String() < b.String() {
		return -1
	}
	return 1
}

// viewState is the same, as the Index has it.
func viewState(x *Index, name types.NamespacedName) string {
	view := x.View(name)
	m := model{
		services: map[types.NamespacedName]*corev1.Service{}, pods: map[types.NamespacedName]*corev1.Pod{},
		nodes: view.Nodes, slices: map[types.NamespacedName]*discoveryv1.EndpointSlice{},
	}
	if view.Service != nil {
		m.services[name] = view.Service
	}
	for _, pod := range view.Pods {
		m.pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	}
	for _, slice := range view.Slices {
		m.slices[types.NamespacedName{Namespace: slice.Namespace, Name: slice.Name}] = slice
	}
	return m.state(name)
}

// TestIndexAgainstModel changes objects at random, and checks after each change
// that the Index sees what walking over everything would, and that it has named
// each Service of which something changed.
func TestIndexAgainstModel(t *testing.T) {
	for seed := range uint64(60) {
		d := &indexDriver{
			rng: rand.New(rand.NewPCG(seed, 7)), index: NewIndex(),
			model: model{map[types.NamespacedName]*corev1.Service{}, map[types.NamespacedName]*corev1.Pod{},
				map[string]Node{}, map[types.NamespacedName]*discoveryv1.EndpointSlice{}},
		}
		before := map[types.NamespacedName]string{}
		for step := range 150 {
			affected := d.change()
			for _, name := range d.names() {
				want := d.model.state(name)
				if got := viewState(d.index, name); got != want {
					t.Fatalf("seed %d step %d: Service %s is\n%s\nwant\n%s", seed, step, name, got, want)
				}
				if want != before[name] && !slices.Contains(affected, name) {
					t.Fatalf("seed %d step %d: Service %s changed and was not named:\n%s\nbefore\n%s", seed, step, name, want, before[name])
				}
				before[name] = want
			}
		}
		d.empty(t)
	}
}

type indexDriver struct {
	rng    *rand.Rand
	index  *Index
	model  model
	serial int
}

func (d *indexDriver) names() []types.NamespacedName {
	var list []types.NamespacedName
	for _, namespace := range []string{"a", "b"} {
		for i := range 5 {
			list = append(list, types.NamespacedName{Namespace: namespace, Name: fmt.Sprintf("s%d", i)})
		}
	}
	return list
}

func (d *indexDriver) name(prefix string, n int) types.NamespacedName {
	return types.NamespacedName{Namespace: []string{"a", "b"}[d.rng.IntN(2)], Name: prefix + strconv.Itoa(d.rng.IntN(n))}
}

// labels returns some of a few labels.
func (d *indexDriver) labels() map[string]string {
	labels := map[string]string{}
	for _, key := range []string{"app", "tier", "env"} {
		if d.rng.IntN(3) > 0 {
			labels[key] = strconv.Itoa(d.rng.IntN(2))
		}
	}
	return labels
}

func (d *indexDriver) change() []types.NamespacedName {
	d.serial++
	switch d.rng.IntN(12) {
	case 0, 1, 2:
		return d.setService()
	case 3:
		name := d.name("s", 5)
		delete(d.model.services, name)
		return d.index.DeleteService(name)
	case 4, 5, 6:
		return d.setPod()
	case 7:
		name := d.name("p", 12)
		delete(d.model.pods, name)
		return d.index.DeletePod(name)
	case 8:
		node := Node{Name: "n" + strconv.Itoa(d.rng.IntN(3)), Zone: strconv.Itoa(d.rng.IntN(2)), Ready: d.rng.IntN(2) == 0, MilliCPU: 1000}
		d.model.nodes[node.Name] = node
		return d.index.SetNode(node)
	case 9:
		name := "n" + strconv.Itoa(d.rng.IntN(3))
		delete(d.model.nodes, name)
		return d.index.DeleteNode(name)
	default:
		return d.setOrDeleteSlice()
	}
}

func (d *indexDriver) setService() []types.NamespacedName {
	name := d.name("s", 5)
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, UID: types.UID(strconv.Itoa(d.rng.IntN(2)))},
		Spec:       corev1.ServiceSpec{Selector: d.labels(), PublishNotReadyAddresses: d.rng.IntN(2) == 0},
	}
	d.model.services[name] = service
	return d.index.SetService(service)
}

func (d *indexDriver) setPod() []types.NamespacedName {
	name := d.name("p", 12)
	pod := testPod(d.rng.IntN(20))
	pod.Namespace, pod.Name, pod.UID = name.Namespace, name.Name, types.UID(strconv.Itoa(d.rng.IntN(2)))
	pod.Labels = d.labels()
	pod.Spec.NodeName = "n" + strconv.Itoa(d.rng.IntN(3))
	setReady(pod, d.rng.IntN(2) == 0)
	if d.rng.IntN(4) == 0 {
		pod.Status.PodIP, pod.Status.PodIPs = "", nil
	}
	if d.rng.IntN(4) == 0 {
		pod.DeletionTimestamp = &metav1.Time{}
	}
	d.model.pods[name] = pod
	return d.index.SetPod(pod)
}

func (d *indexDriver) setOrDeleteSlice() []types.NamespacedName {
	name := d.name("e", 6)
	if old := d.model.slices[name]; old != nil {
		delete(d.model.slices, name)
		return d.index.DeleteSlice(old)
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: name.Namespace, Name: name.Name, UID: types.UID(strconv.Itoa(d.serial)), ResourceVersion: strconv.Itoa(d.serial),
		Labels: map[string]string{discoveryv1.LabelServiceName: "s" + strconv.Itoa(d.rng.IntN(5))},
	}}
	d.model.slices[name] = slice
	return d.index.SetSlice(slice)
}

// empty deletes everything, and checks that nothing is left in the Index.
func (d *indexDriver) empty(t *testing.T) {
	t.Helper()
	for name := range d.model.services {
		d.index.DeleteService(name)
	}
	for name := range d.model.pods {
		d.index.DeletePod(name)
	}
	for name := range d.model.nodes {
		d.index.DeleteNode(name)
	}
	for _, slice := range d.model.slices {
		d.index.DeleteSlice(slice)
	}
	if x := d.index; len(x.namespaces)+len(x.nodes)+len(x.auto)+x.kubeManaged > 0 {
		t.Errorf("left over: %d namespaces, %d nodes, %d Services with hints, %d slices of another controller",
			len(x.namespaces), len(x.nodes), len(x.auto), x.kubeManaged)
	}
}

func TestIndexIgnoresIrrelevantChanges(t *testing.T) {
	x := NewIndex()
	service, pod := testService(), testPod(0)
	web := []types.NamespacedName{{Namespace: "shop", Name: "web"}}
	x.SetService(service)
	diff(t, "a Pod comes", web, x.SetPod(pod))

	pod = pod.DeepCopy()
	pod.Annotations = map[string]string{"note": "new"}
	pod.ResourceVersion = "2"
	diff(t, "a Pod's annotation", []types.NamespacedName(nil), x.SetPod(pod))

	pod = pod.DeepCopy()
	pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(5_000, 0)}
	diff(t, "a Pod begins to end", web, x.SetPod(pod))
	pod = pod.DeepCopy()
	pod.DeletionTimestamp = &metav1.Time{Time: time.Unix(4_000, 0)}
	diff(t, "its deadline moves", []types.NamespacedName(nil), x.SetPod(pod))

	waiting := testPod(1)
	waiting.Status = corev1.PodStatus{Phase: corev1.PodPending}
	diff(t, "a Pod without an address comes", []types.NamespacedName(nil), x.SetPod(waiting))
	diff(t, "and goes", []types.NamespacedName(nil), x.DeletePod(types.NamespacedName{Namespace: "shop", Name: waiting.Name}))

	service = service.DeepCopy()
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.200"}}
	diff(t, "a Service's status", []types.NamespacedName(nil), x.SetService(service))
	diff(t, "a Node without Pods", []types.NamespacedName(nil), x.SetNode(Node{Name: "node-9", Zone: "a"}))
	diff(t, "the Pod's Node", web, x.SetNode(Node{Name: "node-1", Zone: "a"}))
	diff(t, "the Node's readiness", []types.NamespacedName(nil), x.SetNode(Node{Name: "node-1", Zone: "a", Ready: true}))
	diff(t, "the Node's zone", web, x.SetNode(Node{Name: "node-1", Zone: "b"}))
}

func TestIndexNames(t *testing.T) {
	x := NewIndex()
	manual := testService()
	manual.Name, manual.Spec.Selector = "manual", nil
	x.SetService(testService())
	x.SetService(manual)
	x.SetSlice(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "left-1", Labels: map[string]string{discoveryv1.LabelServiceName: "gone"}}})
	diff(t, "names", []types.NamespacedName{
		{Namespace: "shop", Name: "gone"}, {Namespace: "shop", Name: "manual"}, {Namespace: "shop", Name: "web"},
	}, x.Names())
}

func TestIndexFilesUnderRarestLabel(t *testing.T) {
	x := NewIndex()
	for i := range 2000 {
		service := testService()
		service.Name = fmt.Sprintf("web-%d", i)
		service.Spec.Selector = map[string]string{"env": "prod", "tier": "web", "app": strconv.Itoa(i)}
		x.SetService(service)
	}
	for p, set := range x.namespaces["shop"].servicesByPair {
		if len(set) > 2 {
			t.Errorf("%d of 2000 Services are filed under %v", len(set), p)
		}
	}
}

func TestIndexOwnWrites(t *testing.T) {
	slice := func(uid, version string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web-1", UID: types.UID(uid), ResourceVersion: version,
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
		}}
	}
	x := NewIndex()
	x.SetService(testService())
	web := types.NamespacedName{Namespace: "shop", Name: "web"}
	version := func() string {
		if list := x.View(web).Slices; len(list) > 0 {
			return list[0].ResourceVersion
		}
		return "none"
	}
	x.SetSlice(slice("u1", "100"))
	if got := x.SetSlice(slice("u1", "99")); got != nil || version() != "100" {
		t.Errorf("an older version is news: %v, %s", got, version())
	}
	if got := x.SetSlice(slice("u1", "100")); got != nil {
		t.Errorf("the watch tells what we wrote, and it is news: %v", got)
	}
	if got := x.SetSlice(slice("u1", "1000")); got == nil || version() != "1000" {
		t.Errorf("a newer version is no news, or text is compared for numbers: %v, %s", got, version())
	}
	x.ForgetSlice(slice("u1", "1000"))
	if got := x.SetSlice(slice("u1", "1001")); got != nil || version() != "none" {
		t.Errorf("a late event brings a deleted slice back: %v, %s", got, version())
	}
	if got := x.DeleteSlice(slice("u1", "1002")); got != nil {
		t.Errorf("the watch tells what we deleted, and it is news: %v", got)
	}
	if got := x.SetSlice(slice("u2", "1003")); got == nil || version() != "1003" {
		t.Errorf("a new slice of the same name is no news: %v, %s", got, version())
	}
	if got := x.DeleteSlice(slice("u2", "1004")); got == nil || version() != "none" {
		t.Errorf("somebody deletes a slice, and it is no news: %v, %s", got, version())
	}
}

func TestTrigger(t *testing.T) {
	x := NewIndex()
	web := types.NamespacedName{Namespace: "shop", Name: "web"}
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	pod := func(n int, since int64) *corev1.Pod {
		p := testPod(n)
		p.Status.Conditions[0].LastTransitionTime = metav1.Unix(since, 0)
		return p
	}
	x.SetService(testService())
	x.SetPod(pod(0, 2_000))
	diff(t, "first pass of a new Service", at(1_000), x.TakeTrigger(web))
	diff(t, "nothing since", time.Time{}, x.TakeTrigger(web))
	x.SetPod(pod(1, 2_020))
	x.SetPod(pod(0, 2_010))
	x.SetPod(pod(0, 2_005)) // clocks go back
	taken := x.TakeTrigger(web)
	diff(t, "the earliest change", at(2_010), taken)
	x.SetPod(pod(1, 2_030))
	x.Retrigger(web, taken)
	diff(t, "given back", at(2_010), x.TakeTrigger(web))

	restarted := NewIndex()
	restarted.SetSlice(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}})
	restarted.SetService(testService())
	restarted.SetPod(pod(0, 2_000))
	diff(t, "first pass after a restart", time.Time{}, restarted.TakeTrigger(web))
}

// BenchmarkIndexPod changes one Pod among many Services in one namespace.
func BenchmarkIndexPod(b *testing.B) {
	for _, services := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(services, "-services"), func(b *testing.B) {
			x := NewIndex()
			for i := range services {
				service := testService()
				service.Name = fmt.Sprintf("web-%d", i)
				service.Spec.Selector = map[string]string{"tier": "web", "app": strconv.Itoa(i)}
				x.SetService(service)
			}
			pod := testPod(0)
			pod.Labels = map[string]string{"tier": "web", "app": "7"}
			for b.Loop() {
				pod = pod.DeepCopy()
				setReady(pod, !Ready(pod))
				x.SetPod(pod)
			}
		})
	}
}
