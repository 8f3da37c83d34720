// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// computeOne returns the IPv4 slices of a Service with the given Pods.
func computeOne(t *testing.T, service *corev1.Service, pods ...*corev1.Pod) ([]*discoveryv1.EndpointSlice, Plan) {
	t.Helper()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	plan := Compute(Input{Service: service, Pods: pods, Nodes: testNodes})
	return apply(t, nil, plan), plan
}

func TestEndpointOfPod(t *testing.T) {
	tests := []struct {
		name    string
		service func(*corev1.Service)
		pod     func(*corev1.Pod)
		want    func(*discoveryv1.Endpoint) // changes of the endpoint below; nil: no endpoint
	}{
		{name: "ready", want: func(*discoveryv1.Endpoint) {}},
		{
			name: "not ready",
			pod:  func(p *corev1.Pod) { setReady(p, false) },
			want: func(e *discoveryv1.Endpoint) { e.Conditions.Ready, e.Conditions.Serving = new(false), new(false) },
		},
		{
			name:    "not ready, but published",
			service: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			pod:     func(p *corev1.Pod) { setReady(p, false) },
			want:    func(e *discoveryv1.Endpoint) { e.Conditions.Serving = new(false) },
		},
		{
			name: "terminating and serving",
			pod:  func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} },
			want: func(e *discoveryv1.Endpoint) { e.Conditions.Ready, e.Conditions.Terminating = new(false), new(true) },
		},
		{name: "succeeded", pod: func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }},
		{name: "failed", pod: func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }},
		{name: "no address", pod: func(p *corev1.Pod) { p.Status.PodIP, p.Status.PodIPs = "", nil }},
		{name: "no address of the family", pod: func(p *corev1.Pod) { p.Status.PodIPs = p.Status.PodIPs[1:] }},
		{name: "an address that is none", pod: func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: "10.244.0.300"}} }},
		{
			name: "an address with leading zeros, as old API servers took them",
			pod:  func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "010.244.000.001" },
			want: func(*discoveryv1.Endpoint) {},
		},
		{
			name: "an IPv4-mapped address",
			pod:  func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "::ffff:10.244.0.1" },
			want: func(*discoveryv1.Endpoint) {},
		},
		{name: "unknown Node", pod: func(p *corev1.Pod) { p.Spec.NodeName = "node-9" }},
		{
			name:    "unknown Node, but published",
			service: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			pod:     func(p *corev1.Pod) { p.Spec.NodeName = "node-9" },
			want:    func(e *discoveryv1.Endpoint) { e.NodeName, e.Zone = new("node-9"), nil },
		},
		{
			name: "host name in the Service's subdomain",
			pod:  func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "db-0", "web" },
			want: func(e *discoveryv1.Endpoint) { e.Hostname = new("db-0") },
		},
		{
			name: "host name elsewhere",
			pod:  func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "db-0", "other" },
			want: func(*discoveryv1.Endpoint) {},
		},
		{
			name:    "PreferSameZone",
			service: func(s *corev1.Service) { s.Spec.TrafficDistribution = new("PreferSameZone") },
			want: func(e *discoveryv1.Endpoint) {
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}}
			},
		},
		{
			name:    "PreferSameNode",
			service: func(s *corev1.Service) { s.Spec.TrafficDistribution = new("PreferSameNode") },
			want: func(e *discoveryv1.Endpoint) {
				e.Hints = &discoveryv1.EndpointHints{
					ForZones: []discoveryv1.ForZone{{Name: "a"}}, ForNodes: []discoveryv1.ForNode{{Name: "node-1"}},
				}
			},
		},
		{
			name:    "no hints for what is not ready",
			service: func(s *corev1.Service) { s.Spec.TrafficDistribution = new("PreferSameNode") },
			pod:     func(p *corev1.Pod) { setReady(p, false) },
			want:    func(e *discoveryv1.Endpoint) { e.Conditions.Ready, e.Conditions.Serving = new(false), new(false) },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service, pod := testService(), testPod(0)
			if test.service != nil {
				test.service(service)
			}
			if test.pod != nil {
				test.pod(pod)
			}
			var want []discoveryv1.Endpoint
			if test.want != nil {
				endpoint := discoveryv1.Endpoint{
					Addresses:  []string{"10.244.0.1"},
					Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
					NodeName:   new("node-1"), Zone: new("a"),
					TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: "web-0000", UID: "pod-uid-0"},
				}
				test.want(&endpoint)
				want = append(want, endpoint)
			}
			slices, _ := computeOne(t, service, pod)
			if len(slices) != 1 {
				t.Fatalf("%d slices, want one", len(slices))
			}
			diff(t, "endpoints", want, slices[0].Endpoints)
		})
	}
}

func TestPortsDifferBetweenPods(t *testing.T) {
	service := testService()
	service.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web"), AppProtocol: new("http")},
		{Name: "metrics", Port: 9090, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("metrics")},
	}
	old, canary, bare := testPod(0), testPod(1), testPod(2)
	canary.Spec.Containers[0].Ports[0].ContainerPort = 9999
	bare.Spec.Containers[0].Ports = nil
	sidecar := corev1.Container{Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
		Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: 9100, Protocol: corev1.ProtocolTCP}}}
	old.Spec.InitContainers = []corev1.Container{sidecar}

	list, plan := computeOne(t, service, old, canary, bare)
	got := map[string]string{}
	for _, slice := range list {
		var ports []string
		for i := range slice.Ports {
			ports = append(ports, keyOfPort(&slice.Ports[i]))
		}
		got[slice.Endpoints[0].TargetRef.Name] = strings.Join(ports, " ")
	}
	diff(t, "ports", map[string]string{
		"web-0000": "http|TCP|8080|http metrics|TCP|9100|",
		"web-0001": "http|TCP|9999|http",
		"web-0002": "",
	}, got)
	diff(t, "problems", []Problem(nil), plan.Problems)

	_, plan = computeOne(t, service, canary, bare)
	if len(plan.Problems) != 1 || plan.Problems[0].Reason != ReasonPortUnknown {
		t.Errorf("no Pod has the port metrics, but the problems are %v", plan.Problems)
	}
}

func TestMetadataOfSlices(t *testing.T) {
	service := testService()
	service.Spec.ClusterIP = corev1.ClusterIPNone
	service.Labels[discoveryv1.LabelManagedBy] = "mine"
	service.Labels[discoveryv1.LabelServiceName] = "other"
	service.Labels[corev1.IsHeadlessService] = "no"
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	at := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	list := apply(t, nil, Compute(Input{Service: service, Pods: testPods(1), Nodes: testNodes, TriggerTime: at}))
	if !strings.HasPrefix(list[0].Name, "web-") || list[0].Namespace != "shop" {
		t.Errorf("the slice is called %s/%s", list[0].Namespace, list[0].Name)
	}
	diff(t, "labels", map[string]string{
		"team": "blue", discoveryv1.LabelManagedBy: KubeManagedBy, v1alpha1.EndpointSliceKeeperLabel: v1alpha1.EndpointSliceKeeper, discoveryv1.LabelServiceName: "web", corev1.IsHeadlessService: "",
	}, list[0].Labels)
	diff(t, "annotations", map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-05-04T03:02:01Z"}, list[0].Annotations)
	diff(t, "owners", []metav1.OwnerReference{{
		APIVersion: "v1", Kind: "Service", Name: "web", UID: "service-uid", Controller: new(true), BlockOwnerDeletion: new(true),
	}}, list[0].OwnerReferences)

	again := Compute(Input{Service: service, Pods: testPods(2), Nodes: testNodes, Slices: list})
	list = apply(t, list, again)
	if _, ok := list[0].Annotations[corev1.EndpointsLastChangeTriggerTime]; ok {
		t.Error("an update of unknown cause keeps the trigger time of the one before")
	}
}

func TestSlicesOfAnotherService(t *testing.T) {
	service := testService()
	list, _ := computeOne(t, service, testPods(3)...)
	recreated := service.DeepCopy()
	recreated.UID = "another-uid"
	plan := Compute(Input{Service: recreated, Pods: testPods(3), Nodes: testNodes, Slices: list})
	if len(plan.Create) != 1 || len(plan.Delete) != 1 || plan.Create[0].Name == plan.Delete[0].Name {
		t.Errorf("slices of the Service's former incarnation: %d created, %d updated, %d deleted",
			len(plan.Create), len(plan.Update), len(plan.Delete))
	}
	deleting := service.DeepCopy()
	deleting.DeletionTimestamp = &metav1.Time{}
	if plan := Compute(Input{Service: deleting, Pods: testPods(3), Nodes: testNodes}); !plan.Empty() {
		t.Errorf("%d writes for a Service that is being deleted", plan.Writes())
	}
}

func TestSliceNamesAreDeterministic(t *testing.T) {
	in := Input{Service: testService(), Pods: testPods(250), Nodes: testNodes}
	first, second := Compute(in), Compute(in)
	diff(t, "plans", first, second)
	if len(first.Create) != 6 {
		t.Errorf("%d slices for 250 endpoints of two families, want 6", len(first.Create))
	}
	// A name that is taken, even by a slice on its way out, is not used.
	taken := first.Create[0].DeepCopy()
	taken.DeletionTimestamp = &metav1.Time{}
	in.Slices = []*discoveryv1.EndpointSlice{taken}
	for _, slice := range Compute(in).Create {
		if slice.Name == taken.Name {
			t.Errorf("name %s is taken", slice.Name)
		}
	}
}

func TestFamilies(t *testing.T) {
	tests := []struct {
		name      string
		clusterIP string
		families  []corev1.IPFamily
		want      []discoveryv1.AddressType
	}{
		{"named", "10.96.0.1", []corev1.IPFamily{"IPv6", "IPv4"}, []discoveryv1.AddressType{"IPv6", "IPv4"}},
		{"by IPv4 ClusterIP", "10.96.0.1", nil, []discoveryv1.AddressType{"IPv4"}},
		{"by IPv6 ClusterIP", "fd00:10:96::1", nil, []discoveryv1.AddressType{"IPv6"}},
		{"headless", "None", nil, []discoveryv1.AddressType{"IPv4", "IPv6"}},
		{"no ClusterIP yet", "", nil, []discoveryv1.AddressType{"IPv4", "IPv6"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			diff(t, "families", test.want, Families(&corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: test.clusterIP, IPFamilies: test.families}}))
		})
	}
}

func TestProblems(t *testing.T) {
	service := testService()
	pods := testPods(4)
	pods[0].Spec.NodeName = "node-9"
	pods[1].Status.PodIPs[1].IP = "nonsense"
	pods[2].Spec.Hostname, pods[2].Spec.Subdomain = "same", "web"
	pods[3].Spec.Hostname, pods[3].Spec.Subdomain = "same", "web"
	plan := Compute(Input{Service: service, Pods: pods, Nodes: testNodes})
	var reasons []string
	for _, problem := range plan.Problems {
		reasons = append(reasons, problem.Reason)
	}
	diff(t, "reasons", []string{ReasonAddressInvalid, ReasonAddressMissing, ReasonHostnameDuplicate, ReasonNodeUnknown}, reasons)
	if plan.Endpoints != 3+2 {
		t.Errorf("%d endpoints: the good Pods must not suffer", plan.Endpoints)
	}
}

// A Pod that is going or not ready has no DNS name, so that a Deployment whose
// Pods have a hostname can roll without an alarm.
func TestHostname(t *testing.T) {
	service := testService()
	for name, change := range map[string]func(*corev1.Pod){
		"terminating": func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} },
		"not ready":   func(p *corev1.Pod) { setReady(p, false) },
	} {
		pods := testPods(2)
		for _, pod := range pods {
			pod.Spec.Hostname, pod.Spec.Subdomain = "same", "web"
		}
		change(pods[0])
		service.Spec.PublishNotReadyAddresses = false
		diff(t, name, []Problem(nil), Compute(Input{Service: service, Pods: pods, Nodes: testNodes}).Problems)
		service.Spec.PublishNotReadyAddresses = true
		if plan := Compute(Input{Service: service, Pods: pods, Nodes: testNodes}); len(plan.Problems) != 1 {
			t.Errorf("%s, but published: problems %v", name, plan.Problems)
		}
	}
}

func TestReadyPodsWithoutAddresses(t *testing.T) {
	service := testService()
	pods := testPods(4)
	pods[0].Status.PodIP, pods[0].Status.PodIPs = "", nil
	pods[1].Status.PodIPs = pods[1].Status.PodIPs[:1]
	pods[2].Status.PodIPs = pods[2].Status.PodIPs[:1]
	setReady(pods[2], false) // it may still get one
	plan := Compute(Input{Service: service, Pods: pods, Nodes: testNodes})
	diff(t, "problems", []Problem{
		{ReasonAddressMissing, "1 ready Pods have no IPv4 address and get none of that traffic (first: web-0000); change the Service's ipFamilyPolicy or give the Pods' network that family"},
		{ReasonAddressMissing, "2 ready Pods have no IPv6 address and get none of that traffic (first: web-0000); change the Service's ipFamilyPolicy or give the Pods' network that family"},
	}, plan.Problems)
	if plan.Endpoints != 3+1 {
		t.Errorf("%d endpoints: the good Pods must not suffer", plan.Endpoints)
	}
}

func TestInvalidSelector(t *testing.T) {
	service := testService()
	service.Spec.Selector = map[string]string{"app": "no blanks", "tier": "web"}
	plan := Compute(Input{Service: service, Nodes: testNodes})
	diff(t, "problems", []Problem{
		{ReasonSelectorInvalid, `selector "app": "no blanks" cannot be a Pod's label, so that the Service has no endpoints; correct it`},
	}, plan.Problems)
	if plan.Slices != 2 {
		t.Errorf("%d slices, want the two empty ones that say so", plan.Slices)
	}
}
