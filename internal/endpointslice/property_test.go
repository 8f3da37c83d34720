// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestComputeHistories drives random histories and checks, after every step, what must
// hold whatever happened before.
func TestComputeHistories(t *testing.T) {
	seeds := uint64(120)
	if testing.Short() {
		seeds = 40
	}
	for seed := range seeds {
		w := newWorld(seed)
		limit := 2 + int(seed%9)
		var existing []*discoveryv1.EndpointSlice
		for step := range 40 {
			w.step()
			if w.rng.IntN(10) == 0 { // as slices that another controller made are taken over
				limit = 2 + w.rng.IntN(9)
			}
			in := w.input(existing, limit)
			in.Compact = w.rng.IntN(10) == 0
			before := copyInput(in)
			plan := Compute(in)
			diff(t, "the arguments were changed", before.Pods, in.Pods)
			diff(t, "the arguments were changed", before.Slices, in.Slices)
			diff(t, "the arguments were changed", before.Service, in.Service)
			diff(t, "the order of the input matters", plan, Compute(shuffled(in, w.rng)))

			checkOnTheWay(t, w.rng, existing, plan)
			existing = apply(t, existing, plan)
			again := Compute(w.input(existing, limit))
			if !again.Empty() {
				t.Errorf("a second pass writes %d slices", again.Writes())
			}
			checkState(t, w, existing, limit, plan)
			if t.Failed() {
				t.Fatalf("seed %d step %d", seed, step)
			}
		}
	}
}

func copyInput(in Input) Input {
	out := in
	out.Service, out.Pods, out.Slices = in.Service.DeepCopy(), slices.Clone(in.Pods), slices.Clone(in.Slices)
	for i := range out.Pods {
		out.Pods[i] = out.Pods[i].DeepCopy()
	}
	for i := range out.Slices {
		out.Slices[i] = out.Slices[i].DeepCopy()
	}
	return out
}

// checkOnTheWay carries out a part of the plan, as the order of its writes
// allows, and looks for endpoints that are there before and after and not then.
func checkOnTheWay(t *testing.T, rng *rand.Rand, existing []*discoveryv1.EndpointSlice, plan Plan) {
	t.Helper()
	before, after := served(existing), served(apply(t, existing, plan))
	for step := range 6 {
		part := Plan{Create: someOf(rng, plan.Create), Update: someOf(rng, plan.Update)}
		if step%3 > 0 {
			part = Plan{Create: plan.Create, Update: plan.Update, Shrink: someOf(rng, plan.Shrink)}
		}
		if step%3 > 1 {
			part.Shrink, part.Delete = plan.Shrink, someOf(rng, plan.Delete)
		}
		on := served(apply(t, existing, part))
		for place := range before {
			if after[place] && !on[place] {
				t.Errorf("%s is missing after a part of the writes", place)
			}
		}
	}
}

// served returns a line for each address and port that the slices have.
func served(list []*discoveryv1.EndpointSlice) map[string]bool {
	places := map[string]bool{}
	for _, slice := range list {
		for i := range slice.Ports {
			for _, endpoint := range slice.Endpoints {
				places[endpoint.Addresses[0]+" "+keyOfPort(&slice.Ports[i])] = true
			}
		}
	}
	return places
}

func someOf[T any](rng *rand.Rand, list []T) []T {
	list = slices.Clone(list)
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list[:rng.IntN(len(list)+1)]
}

// checkState compares the slices with the Pods, by the plainest possible rules.
func checkState(t *testing.T, w *world, existing []*discoveryv1.EndpointSlice, limit int, plan Plan) {
	t.Helper()
	total := 0
	for i, family := range w.service.Spec.IPFamilies {
		got := endpointsByName(t, existing, discoveryv1.AddressType(family))
		want := map[string]bool{}
		for _, pod := range w.pods {
			if len(pod.Status.PodIPs) <= i {
				continue
			}
			if _, known := testNodes(pod.Spec.NodeName); !known && !w.service.Spec.PublishNotReadyAddresses {
				continue
			}
			want[pod.Name] = true
			endpoint, ok := got[pod.Name]
			if !ok {
				t.Errorf("Pod %s has no %s endpoint", pod.Name, family)
				continue
			}
			checkEndpoint(t, w.service, pod, pod.Status.PodIPs[i].IP, endpoint)
		}
		for name := range got {
			if !want[name] {
				t.Errorf("endpoint of Pod %s is left over", name)
			}
		}
		total += len(got)
		if len(sizes(existing, discoveryv1.AddressType(family))) == 0 {
			t.Errorf("there is no %s slice", family)
		}
	}
	if plan.Endpoints != total || plan.Slices != len(existing) || plan.Needed > plan.Slices {
		t.Errorf("plan says %d endpoints in %d slices, needed %d; there are %d in %d",
			plan.Endpoints, plan.Slices, plan.Needed, total, len(existing))
	}
	for _, slice := range existing {
		if len(slice.Endpoints) > limit {
			t.Errorf("slice %s has %d endpoints, more than %d", slice.Name, len(slice.Endpoints), limit)
		}
		diff(t, "labels", LabelsOf(w.service, false), slice.Labels)
	}
}

func checkEndpoint(t *testing.T, service *corev1.Service, pod *corev1.Pod, address string, got discoveryv1.Endpoint) {
	t.Helper()
	serving, terminating := Ready(pod), pod.DeletionTimestamp != nil
	ready := service.Spec.PublishNotReadyAddresses || serving && !terminating
	if got.Addresses[0] != address || *got.Conditions.Ready != ready || *got.Conditions.Serving != serving ||
		*got.Conditions.Terminating != terminating || *got.NodeName != pod.Spec.NodeName {
		t.Errorf("endpoint of Pod %s: %+v", pod.Name, got)
	}
	if !ready && got.Hints != nil {
		t.Errorf("endpoint of Pod %s is not ready but has hints", pod.Name)
	}
}
