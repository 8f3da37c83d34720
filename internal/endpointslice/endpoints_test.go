// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// subsetText returns an Endpoints object's subsets as lines such as
// "http:8080 | 10.244.0.1 !10.244.0.2", where "!" means not ready.
func subsetText(endpoints *corev1.Endpoints) []string { //nolint:staticcheck // the deprecated type is the point
	var lines []string
	for _, subset := range endpoints.Subsets {
		var ports, addresses []string
		for _, port := range subset.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d", port.Name, port.Port))
		}
		for _, address := range subset.Addresses {
			addresses = append(addresses, address.IP)
		}
		for _, address := range subset.NotReadyAddresses {
			addresses = append(addresses, "!"+address.IP)
		}
		lines = append(lines, strings.Join(ports, " ")+" | "+strings.Join(addresses, " "))
	}
	return lines
}

func TestLegacyEndpoints(t *testing.T) {
	tests := []struct {
		name    string
		service func(*corev1.Service)
		pods    func([]*corev1.Pod) // of three ready ones
		want    []string
	}{
		{name: "ready", want: []string{"http:8080 | 10.244.0.1 10.244.0.2 10.244.0.3"}},
		{
			name: "not ready", pods: func(p []*corev1.Pod) { setReady(p[1], false) },
			want: []string{"http:8080 | 10.244.0.1 10.244.0.3 !10.244.0.2"},
		},
		{
			name:    "not ready, but published",
			service: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			pods:    func(p []*corev1.Pod) { setReady(p[1], false); p[2].DeletionTimestamp = &metav1.Time{} },
			want:    []string{"http:8080 | 10.244.0.1 10.244.0.2 10.244.0.3"},
		},
		{
			name: "terminating ones are left out", pods: func(p []*corev1.Pod) { p[0].DeletionTimestamp = &metav1.Time{} },
			want: []string{"http:8080 | 10.244.0.2 10.244.0.3"},
		},
		{
			name:    "the first family only",
			service: func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6", "IPv4"} },
			want:    []string{"http:8080 | fd00:10:244::1 fd00:10:244::2 fd00:10:244::3"},
		},
		{
			name: "ports with the same Pods share a subset",
			service: func(s *corev1.Service) {
				s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "alt", Port: 81, TargetPort: intstr.FromInt32(81), Protocol: "TCP"})
			},
			want: []string{"alt:81 http:8080 | 10.244.0.1 10.244.0.2 10.244.0.3"},
		},
		{
			name:    "a named port differs",
			service: func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") },
			pods:    func(p []*corev1.Pod) { p[1].Spec.Containers[0].Ports[0].ContainerPort = 9090 },
			want:    []string{"http:8080 | 10.244.0.1 10.244.0.3", "http:9090 | 10.244.0.2"},
		},
		{
			name: "headless without ports",
			service: func(s *corev1.Service) {
				s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil
			},
			want: []string{" | 10.244.0.1 10.244.0.2 10.244.0.3"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service, pods := testService(), testPods(3)
			if test.service != nil {
				test.service(service)
			}
			if test.pods != nil {
				test.pods(pods)
			}
			got := ComputeEndpoints(service, pods, nil)
			diff(t, "subsets", test.want, subsetText(got))
			slices.Reverse(pods)
			if again := ComputeEndpoints(service, pods, got); again != nil {
				t.Errorf("a second pass, in another order, writes %v", subsetText(again))
			}
		})
	}
}

func TestLegacyLabelsAndTakeOver(t *testing.T) {
	service := testService()
	service.Spec.ClusterIP = corev1.ClusterIPNone
	existing := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{ //nolint:staticcheck
		Namespace: "shop", Name: "web", ResourceVersion: "7",
		Labels:      map[string]string{LegacyManagedByLabel: LegacyKubeManagedBy},
		Annotations: map[string]string{"mine": "kept", corev1.EndpointsLastChangeTriggerTime: "2020-01-01T00:00:00Z"},
	}}
	before := existing.DeepCopy()
	got := ComputeEndpoints(service, testPods(1), existing)
	diff(t, "the argument was changed", before, existing)
	diff(t, "labels", map[string]string{"team": "blue", corev1.IsHeadlessService: "", LegacyManagedByLabel: LegacyManagedBy}, got.Labels)
	diff(t, "annotations", map[string]string{"mine": "kept"}, got.Annotations)
	if got.ResourceVersion != "7" {
		t.Error("an update must name the version that it is based on")
	}
}

func TestLegacyOverCapacity(t *testing.T) {
	count := func(e *corev1.Endpoints) (ready, notReady int) { //nolint:staticcheck
		for _, subset := range e.Subsets {
			ready += len(subset.Addresses)
			notReady += len(subset.NotReadyAddresses)
		}
		return ready, notReady
	}
	tests := []struct {
		name                string
		ready, unready      int
		wantReady, wantRest int
		truncated           bool
	}{
		{"full", 1000, 0, 1000, 0, false},
		{"too many ready", 1500, 10, 1000, 0, true},
		{"too many not ready", 900, 500, 900, 100, true},
		{"none ready", 0, 1200, 0, 1000, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pods := testPods(test.ready + test.unready)
			for i := range test.unready {
				setReady(pods[test.ready+i], false)
			}
			service := testService()
			service.Spec.Ports[0].TargetPort = intstr.FromString("web")
			for i, pod := range pods {
				pod.Spec.Containers[0].Ports[0].ContainerPort = 8080 + int32(i%3) // three subsets
			}
			got := ComputeEndpoints(service, pods, nil)
			ready, notReady := count(got)
			if ready != test.wantReady || notReady != test.wantRest {
				t.Errorf("%d ready and %d not ready, want %d and %d", ready, notReady, test.wantReady, test.wantRest)
			}
			if (got.Annotations[corev1.EndpointsOverCapacity] == "truncated") != test.truncated {
				t.Errorf("annotations %v", got.Annotations)
			}
			if again := ComputeEndpoints(service, pods, got); again != nil {
				t.Error("a second pass writes")
			}
			if fewer := ComputeEndpoints(service, pods[:1], got); fewer == nil || fewer.Annotations[corev1.EndpointsOverCapacity] != "" {
				t.Error("the annotation stays when there is room again")
			}
		})
	}
}

// handMade returns an Endpoints object of a Service without a selector.
func handMade() (*corev1.Service, *corev1.Endpoints) { //nolint:staticcheck
	service := testService()
	service.Spec.Selector = nil
	return service, &corev1.Endpoints{ //nolint:staticcheck
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "endpoints-uid", Labels: map[string]string{"color": "green"},
			Annotations: map[string]string{
				"note": "copied", corev1.LastAppliedConfigAnnotation: "{}", corev1.EndpointsLastChangeTriggerTime: "2020-01-01T00:00:00Z",
			},
		},
		Subsets: []corev1.EndpointSubset{ //nolint:staticcheck
			{
				Addresses: []corev1.EndpointAddress{
					{IP: "198.51.100.1", Hostname: "one", NodeName: new("node-1")}, {IP: "2001:db8::1"}, {IP: "nonsense"},
				},
				NotReadyAddresses: []corev1.EndpointAddress{{IP: "198.51.100.2"}, {IP: "198.51.100.1", Hostname: "one"}},
				Ports:             []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: "TCP"}},
			},
			{
				Addresses: []corev1.EndpointAddress{{IP: "198.51.100.1"}},
				Ports:     []corev1.EndpointPort{{Name: "https", Port: 443, Protocol: "TCP"}},
			},
		},
	}
}

// mirroredText returns mirrored slices as sorted lines.
func mirroredText(list []*discoveryv1.EndpointSlice) []string {
	lines := []string{}
	for _, slice := range list {
		for _, e := range slice.Endpoints {
			lines = append(lines, fmt.Sprintf("%s %s %s ready=%t", slice.AddressType, keyOfPorts(slice.Ports), e.Addresses[0], *e.Conditions.Ready))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestMirror(t *testing.T) {
	service, endpoints := handMade()
	before := endpoints.DeepCopy()
	plan := ComputeMirror(service, endpoints, nil)
	diff(t, "the argument was changed", before, endpoints)
	list := apply(t, nil, plan)
	diff(t, "endpoints", []string{
		"IPv4 https|TCP|443| 198.51.100.1 ready=true",
		"IPv4 http|TCP|80| 198.51.100.1 ready=true",
		"IPv4 http|TCP|80| 198.51.100.2 ready=false",
		"IPv6 http|TCP|80| 2001:db8::1 ready=true",
	}, mirroredText(list))
	for _, slice := range list {
		diff(t, "labels", map[string]string{
			"color": "green", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: ManagedByMirror}, slice.Labels)
		diff(t, "annotations", map[string]string{"note": "copied"}, slice.Annotations)
		if slice.OwnerReferences[0].UID != endpoints.UID || slice.OwnerReferences[0].Kind != "Endpoints" {
			t.Errorf("owner %v", slice.OwnerReferences)
		}
	}
	if len(plan.Problems) != 1 || plan.Problems[0].Reason != ReasonAddressInvalid {
		t.Errorf("problems %v", plan.Problems)
	}
	if again := ComputeMirror(service, endpoints, list); !again.Empty() {
		t.Errorf("a second pass writes %d slices", again.Writes())
	}

	endpoints.Annotations["note"] = "changed"
	if plan := ComputeMirror(service, endpoints, list); len(plan.Update) != len(list) || plan.Writes() != len(list) {
		t.Errorf("another annotation takes %d updates of %d slices", len(plan.Update), len(list))
	}
	endpoints.Subsets = nil
	if left := apply(t, list, ComputeMirror(service, endpoints, list)); len(left) != 0 {
		t.Errorf("no subsets leave %d slices", len(left))
	}
}

func TestMirrorAdoptsSlicesOfSelector(t *testing.T) {
	service := testService()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	list := apply(t, nil, Compute(Input{Service: service, Pods: testPods(3), Nodes: testNodes}))
	endpoints := ComputeEndpoints(service, testPods(3), nil)
	endpoints.UID = "endpoints-uid"
	service.Spec.Selector = nil
	plan := ComputeMirror(service, endpoints, list)
	if len(plan.Update) != 1 || plan.Writes() != 1 {
		t.Fatalf("%d creates, %d updates, %d deletes; want one update", len(plan.Create), len(plan.Update), len(plan.Delete))
	}
	list = apply(t, list, plan)
	if list[0].OwnerReferences[0].UID != "endpoints-uid" || len(list[0].Endpoints) != 3 {
		t.Errorf("adopted: %v, %d endpoints", list[0].OwnerReferences, len(list[0].Endpoints))
	}
}

func TestMirrorTruncates(t *testing.T) {
	service, endpoints := handMade()
	var addresses []corev1.EndpointAddress
	for i := range 1100 {
		addresses = append(addresses, corev1.EndpointAddress{IP: fmt.Sprintf("198.51.%d.%d", i/250, i%250)})
	}
	endpoints.Subsets = endpoints.Subsets[:1]
	endpoints.Subsets[0].Addresses, endpoints.Subsets[0].NotReadyAddresses = addresses, nil
	plan := ComputeMirror(service, endpoints, nil)
	if plan.Endpoints != 1000 || len(plan.Problems) != 1 || plan.Problems[0].Reason != ReasonMirrorTruncated {
		t.Errorf("%d endpoints, problems %v", plan.Endpoints, plan.Problems)
	}
}

func TestMirrors(t *testing.T) {
	for _, test := range []struct {
		name        string
		labels      map[string]string
		annotations map[string]string
		want        bool
	}{
		{"plain", nil, nil, true},
		{"skip", map[string]string{discoveryv1.LabelSkipMirror: "true"}, nil, false},
		{"skip=false", map[string]string{discoveryv1.LabelSkipMirror: "false"}, nil, true},
		{"a lock", nil, map[string]string{leaderAnnotation: "{}"}, false},
	} {
		if got := Mirrors(&corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Labels: test.labels, Annotations: test.annotations}}); got != test.want { //nolint:staticcheck
			t.Errorf("%s: %t", test.name, got)
		}
	}
}

// TestMirrorHistories changes an Endpoints object at random; the union of the
// slices follows, and a second pass changes nothing.
func TestMirrorHistories(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 5))
		service, endpoints := handMade()
		var list []*discoveryv1.EndpointSlice
		for range 15 {
			want := map[string]bool{}
			endpoints.Subsets = nil
			for port := range 1 + rng.IntN(3) {
				subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "p", Port: int32(port + 1), Protocol: "TCP"}}} //nolint:staticcheck
				for _, n := range rng.Perm(8)[:rng.IntN(8)] {
					subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: fmt.Sprintf("198.51.100.%d", n)})
					want[fmt.Sprintf("IPv4 p|TCP|%d| 198.51.100.%d ready=true", port+1, n)] = true
				}
				endpoints.Subsets = append(endpoints.Subsets, subset)
			}
			list = apply(t, list, ComputeMirror(service, endpoints, list))
			diff(t, "endpoints", append([]string{}, slices.Sorted(maps.Keys(want))...), mirroredText(list))
			if again := ComputeMirror(service, endpoints, list); !again.Empty() || t.Failed() {
				t.Fatalf("seed %d: a second pass writes %d slices", seed, again.Writes())
			}
		}
	}
}
