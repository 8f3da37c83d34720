// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// othersOf returns copies of slices as kube-controller-manager would name them.
func othersOf(list []*discoveryv1.EndpointSlice) []*discoveryv1.EndpointSlice {
	var others []*discoveryv1.EndpointSlice
	for _, slice := range list {
		other := slice.DeepCopy()
		other.Name += "-other"
		other.Labels[discoveryv1.LabelManagedBy] = KubeManagedBy
		delete(other.Labels, v1alpha1.EndpointSliceKeeperLabel)
		others = append(others, other)
	}
	return others
}

func TestTakeOverInPlace(t *testing.T) {
	service := testService()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	ours := apply(t, nil, Compute(Input{Service: service, Pods: testPods(150), Nodes: testNodes}))
	theirs := othersOf(ours)
	plan := Compute(Input{Service: service, Pods: testPods(150), Nodes: testNodes, Slices: theirs})
	if len(plan.Update) != 2 || plan.Writes() != 2 {
		t.Fatalf("%d writes, want two updates", plan.Writes())
	}
	taken := apply(t, theirs, plan)
	for i := range taken {
		diff(t, "endpoints", theirs[i].Endpoints, taken[i].Endpoints)
		if got := Manager(service, taken[i]); got != ManagedBy {
			t.Errorf("slice %s is managed by %s", taken[i].Name, got)
		}
	}
	for i, back := range HandBack(taken) {
		diff(t, "labels", theirs[i].Labels, back.Labels)
		diff(t, "endpoints", theirs[i].Endpoints, back.Endpoints)
	}
}

func TestCovers(t *testing.T) {
	service := testService()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	ours := apply(t, nil, Compute(Input{Service: service, Pods: testPods(3), Nodes: testNodes}))
	change := func(f func(*discoveryv1.EndpointSlice)) []*discoveryv1.EndpointSlice {
		theirs := othersOf(ours)
		f(theirs[0])
		return theirs
	}
	for _, test := range []struct {
		name   string
		theirs []*discoveryv1.EndpointSlice
		want   bool
	}{
		{"the same", change(func(*discoveryv1.EndpointSlice) {}), true},
		{"more", change(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.99"}})
		}), true},
		{"one less", change(func(s *discoveryv1.EndpointSlice) { s.Endpoints = s.Endpoints[1:] }), false},
		{"one not ready", change(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = new(false) }), false},
		{"other ports", change(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Port = new(int32(1)) }), false},
		{"none", nil, false},
	} {
		if got := Covers(test.theirs, ours); got != test.want {
			t.Errorf("%s: %t", test.name, got)
		}
	}
	if !Covers(nil, nil) {
		t.Error("nothing is covered by nothing")
	}
}

func TestForeignFamilies(t *testing.T) {
	slice := func(name, manager string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{AddressType: family}
		s.Name, s.Labels = name, map[string]string{discoveryv1.LabelManagedBy: manager}
		return s
	}
	got := ForeignFamilies([]*discoveryv1.EndpointSlice{
		slice("ours", ManagedBy, discoveryv1.AddressTypeIPv6), slice("fine", "me", discoveryv1.AddressTypeIPv4),
		slice("wrong", "me", discoveryv1.AddressTypeIPv6), slice("name", "me", discoveryv1.AddressTypeFQDN),
	}, []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4})
	diff(t, "names", []string{"wrong", "name"}, got)
}

// Another controller may put more endpoints into a slice than we do. What does not fit is
// elsewhere before the slice loses it.
func TestTakeOverOfLargeSlices(t *testing.T) {
	service := testService()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	in := Input{Service: service, Pods: testPods(250), Nodes: testNodes, MaxEndpoints: 1000}
	in.Slices = othersOf(apply(t, nil, Compute(in)))
	in.MaxEndpoints = 0
	plan := Compute(in)
	if len(plan.Create) != 2 || len(plan.Update) != 0 || len(plan.Shrink) != 1 || plan.Writes() != 3 {
		t.Errorf("%d creates, %d updates before and %d after them; want 2, 0 and 1", len(plan.Create), len(plan.Update), len(plan.Shrink))
	}
	diff(t, "sizes", []int{100, 100, 50}, sizes(apply(t, in.Slices, plan), discoveryv1.AddressTypeIPv4))
}

// Slices that an earlier version labelled are renamed in place, back and forth,
// and stay ours all the while.
func TestOwnName(t *testing.T) {
	service := testService()
	in := Input{Service: service, Pods: testPods(3), Nodes: testNodes, OwnName: true}
	in.Slices = apply(t, nil, Compute(in))
	for _, ownName := range []bool{true, false, true} {
		in.OwnName = ownName
		plan := Compute(in)
		if plan.Writes() != len(plan.Update) || plan.Writes() > 2 {
			t.Errorf("own name %t: %d writes, %d updates; want at most 2 updates", ownName, plan.Writes(), len(plan.Update))
		}
		in.Slices = apply(t, in.Slices, plan)
		if owned := Owned(service, in.Slices); len(owned) != 2 || HasOwnName(owned) != ownName {
			t.Errorf("own name %t: %d of 2 slices are ours, %t", ownName, len(owned), HasOwnName(owned))
		}
	}
}

// A label that the Service has is no sign of who keeps its slices: the other controller
// copies it.
func TestKeeperLabelOfService(t *testing.T) {
	service := testService()
	service.Labels[v1alpha1.EndpointSliceKeeperLabel] = v1alpha1.EndpointSliceKeeper
	ours := apply(t, nil, Compute(Input{Service: service, Pods: testPods(3), Nodes: testNodes}))
	theirs := ours[0].DeepCopy()
	theirs.Labels[discoveryv1.LabelManagedBy] = KubeManagedBy
	list := append([]*discoveryv1.EndpointSlice{theirs}, ours...)
	if owned, others := Owned(service, list), KubeManaged(service, list); len(owned) != 2 || len(others) != 1 {
		t.Errorf("%d are ours and %d the other controller's, want 2 and 1", len(owned), len(others))
	}
}
