// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/causeway-lb/causeway/internal/proxy/model"
)

func nn(name string) types.NamespacedName {
	return types.NamespacedName{Namespace: "default", Name: name}
}

func sliceOf(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05.6Z"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for _, a := range addrs {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a, "192.0.2.99"}, NodeName: ptr.To("node-1"), TargetRef: &corev1.ObjectReference{Name: "pod"},
			Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	return sl
}

func serviceOf(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: name, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "x"}},
	}}
}

// heard collects Events by Service name.
func heard(s *Store) *[]Event {
	events := &[]Event{}
	s.Listen(func(e Event) { *events = append(*events, e) })
	return events
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreSlicesByService(t *testing.T) {
	s := NewStore()
	events := heard(s)
	sv, sl := s.serviceFeed(), s.sliceFeed()
	must(t, sv.Add(serviceOf("web")))
	must(t, sl.Add(sliceOf("web-1", "web", "10.244.1.2")))
	must(t, sl.Add(sliceOf("web-2", "web", "10.244.1.3")))
	must(t, sl.Add(sliceOf("stray", "", "10.244.1.4")))
	in, ok := s.Input(nn("web"))
	if !ok || len(in.Slices) != 2 {
		t.Fatalf("web has %d slices, want 2", len(in.Slices))
	}
	if last := (*events)[len(*events)-1]; last.Name != nn("web") || !last.Trigger.Equal(time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)) {
		t.Errorf("last event: %+v", last)
	}

	// A slice that changes its Service is told to both.
	*events = nil
	must(t, sl.Update(sliceOf("web-2", "other", "10.244.1.3")))
	var names []string
	for _, e := range *events {
		names = append(names, e.Name.Name)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{"other", "web"}, names); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if got := len(s.Slices(nn("web"))); got != 1 {
		t.Errorf("web has %d slices, want 1", got)
	}
	must(t, sl.Delete(sliceOf("web-1", "web")))
	if got := len(s.Slices(nn("web"))); got != 0 {
		t.Errorf("web has %d slices, want none", got)
	}
	must(t, sv.Delete(serviceOf("web")))
	if _, ok := s.Input(nn("web")); ok {
		t.Error("web is still there")
	}
}

// A list after a break in the watch tells of what went meanwhile.
func TestReplace(t *testing.T) {
	s := NewStore()
	sl := s.sliceFeed()
	select {
	case <-s.Listed(KindEndpointSlice):
		t.Error("listed before the list")
	default:
	}
	must(t, sl.Replace([]any{sliceOf("a-1", "a", "10.244.1.2"), sliceOf("b-1", "b", "10.244.1.3")}, ""))
	<-s.Listed(KindEndpointSlice)
	events := heard(s)
	must(t, sl.Replace([]any{sliceOf("b-1", "b", "10.244.1.3"), sliceOf("c-1", "c")}, ""))
	told := map[string]bool{}
	for _, e := range *events {
		told[e.Name.Name] = true
	}
	if diff := cmp.Diff(map[string]bool{"a": true, "b": true, "c": true}, told); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
	if len(s.Slices(nn("a"))) != 0 || len(s.Slices(nn("b"))) != 1 || len(s.Slices(nn("c"))) != 1 {
		t.Error("the Store is not the list")
	}
}

func TestStripKeepsFieldsThatPoliciesRead(t *testing.T) {
	s := NewStore()
	original := sliceOf("web-1", "web", "10.244.1.2", "10.244.1.3")
	original.Annotations[model.WeightAnnotation] = "3"
	before := original.DeepCopy()
	must(t, s.sliceFeed().Add(original))
	if diff := cmp.Diff(before, original); diff != "" {
		t.Errorf("the reflector's object was modified:\n%s", diff)
	}
	got := s.Slices(nn("web"))[0]
	if len(got.Endpoints) != 2 || got.Endpoints[0].TargetRef != nil || len(got.Endpoints[0].Addresses) != 1 || *got.Endpoints[0].NodeName != "node-1" {
		t.Errorf("stripped to %+v", got.Endpoints)
	}
	if diff := cmp.Diff(map[string]string{model.WeightAnnotation: "3"}, got.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if got.Endpoints[0].NodeName != got.Endpoints[1].NodeName {
		t.Error("the node's name is there twice")
	}
	must(t, s.serviceFeed().Add(serviceOf("web")))
	if s.Service(nn("web")).ManagedFields != nil {
		t.Error("managed fields are kept")
	}
}

// A port that was renamed keeps its endpoints until the slices follow, also with
// what the Store keeps of a Service.
func TestRenamedPortKeepsItsEndpoints(t *testing.T) {
	s := NewStore()
	svc, sl := serviceOf("web"), sliceOf("web-1", "web", "10.244.1.2")
	svc.Spec = corev1.ServiceSpec{
		ClusterIP: "10.96.0.10", Selector: map[string]string{"app": "web"},
		Ports: []corev1.ServicePort{{Name: "http-web", Port: 80, TargetPort: intstr.FromInt32(8080)}},
	}
	sl.Ports = []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}}
	must(t, s.serviceFeed().Add(svc))
	must(t, s.sliceFeed().Add(sl))
	in, _ := s.Input(nn("web"))
	out, _ := model.ComputeService(in, model.Node{})
	if len(out.Frontends) != 1 || len(out.Frontends[0].Serving) != 1 {
		t.Errorf("the renamed port has %+v", out.Frontends)
	}
}

// Two ports that have swapped names keep their endpoints until the slices follow,
// whatever their targetPorts are called, and in whichever order the agent hears of it.
func TestSwappedPortsKeepTheirEndpoints(t *testing.T) {
	service := func(version, first, second string) *corev1.Service {
		svc := serviceOf("web")
		svc.ResourceVersion = version
		svc.Spec = corev1.ServiceSpec{
			ClusterIP: "10.96.0.10", Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{
				{Name: first, Port: 80, TargetPort: intstr.FromString("http")}, {Name: second, Port: 81, TargetPort: intstr.FromString("admin")},
			},
		}
		return svc
	}
	slice := func(name, version, of80, of81 string) *discoveryv1.EndpointSlice {
		sl := sliceOf(name, "web", "10.244.1.2")
		sl.ResourceVersion = version
		sl.Ports = []discoveryv1.EndpointPort{{Name: &of80, Port: ptr.To[int32](8080)}, {Name: &of81, Port: ptr.To[int32](9090)}}
		return sl
	}
	for _, tc := range []struct {
		name string
		then []any
		kept bool // what the ports were is known
	}{
		{"before", nil, false},
		{"swapped", []any{service("20", "b", "a")}, true},
		{"swapped, and followed", []any{service("20", "b", "a"), slice("web-1", "21", "b", "a")}, false},
		{"swapped, and heard of it last", []any{slice("web-1", "21", "b", "a"), service("20", "b", "a")}, false},
		{"swapped and back", []any{service("20", "b", "a"), service("21", "a", "b")}, true},
		{"swapped, and renamed", []any{service("20", "b", "a"), service("21", "c", "d")}, true},
		{"swapped, and its status has changed", []any{service("20", "b", "a"), service("21", "b", "a")}, true},
		{"swapped, one of two slices has followed", []any{slice("web-2", "9", "a", "b"), service("20", "b", "a"), slice("web-2", "21", "b", "a")}, true},
	} {
		s := NewStore()
		must(t, s.serviceFeed().Add(service("8", "a", "b")))
		must(t, s.sliceFeed().Add(slice("web-1", "9", "a", "b")))
		for _, obj := range tc.then {
			switch obj := obj.(type) {
			case *corev1.Service:
				must(t, s.serviceFeed().Update(obj))
			case *discoveryv1.EndpointSlice:
				must(t, s.sliceFeed().Update(obj))
			}
		}
		in, _ := s.Input(nn("web"))
		out, _ := model.ComputeService(in, model.Node{})
		for _, f := range out.Frontends {
			if want := map[uint16]uint16{80: 8080, 81: 9090}[f.Port]; len(f.Serving) != 1 || f.Serving[0].Port() != want {
				t.Errorf("%s: port %d leads to %v, want %d", tc.name, f.Port, f.Serving, want)
			}
		}
		if kept := len(in.Former) > 0; kept != tc.kept {
			t.Errorf("%s: former ports are kept: %v", tc.name, kept)
		}
		must(t, s.sliceFeed().Delete(slice("web-1", "30", "", "")))
		must(t, s.sliceFeed().Delete(slice("web-2", "30", "", "")))
		if len(s.older) > 0 {
			t.Errorf("%s: without slices there is still %v", tc.name, s.older)
		}
	}
}
