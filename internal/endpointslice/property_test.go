// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// TestHistories drives random histories and checks, after every step, what must
// hold whatever happened before.
func TestHistories(t *testing.T) {
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
			in := w.input(existing, limit)
			in.Compact = w.rng.IntN(10) == 0
			before := copyInput(in)
			plan := Compute(in)
			diff(t, "the arguments were changed", before.Pods, in.Pods)
			diff(t, "the arguments were changed", before.Slices, in.Slices)
			diff(t, "the arguments were changed", before.Service, in.Service)
			diff(t, "the order of the input matters", plan, Compute(shuffled(in, w.rng)))

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
		diff(t, "labels", LabelsOf(w.service), slice.Labels)
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
