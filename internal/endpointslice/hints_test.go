// SPDX-License-Identifier: Apache-2.0

package endpointslice

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestZoneShares(t *testing.T) {
	node := func(zone string, cpu int64, change func(*Node)) Node {
		n := Node{Name: zone, Zone: zone, MilliCPU: cpu, Ready: true}
		if change != nil {
			change(&n)
		}
		return n
	}
	tests := []struct {
		name  string
		nodes []Node
		want  map[string]float64
	}{
		{"none", nil, nil},
		{"one zone", []Node{node("a", 4000, nil), node("a", 4000, nil)}, nil},
		{"two zones", []Node{node("a", 6000, nil), node("b", 2000, nil)}, map[string]float64{"a": 0.75, "b": 0.25}},
		{"no zone label", []Node{node("a", 4000, nil), node("b", 4000, nil), node("", 4000, nil)}, nil},
		{"no CPU", []Node{node("a", 4000, nil), node("b", 0, nil)}, nil},
		{"Nodes that count for nothing", []Node{
			node("a", 4000, nil), node("b", 4000, nil),
			node("", 0, func(n *Node) { n.Ready = false }), node("c", 9000, func(n *Node) { n.ControlPlane = true }),
		}, map[string]float64{"a": 0.5, "b": 0.5}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			shares := ZoneShares(test.nodes)
			diff(t, "shares", test.want, shares.ByZone)
			if (shares.Reason == "") != (test.want != nil) {
				t.Errorf("reason %q", shares.Reason)
			}
		})
	}
}

// TestTopologyAuto gives Pods in zones and looks at how many are hinted for
// which zone.
func TestTopologyAuto(t *testing.T) {
	third := map[string]float64{"a": 1. / 3, "b": 1. / 3, "c": 1. / 3}
	tests := []struct {
		name   string
		pods   map[string]int // zone -> Pods
		shares map[string]float64
		want   map[string]int // zone -> hints; nil: none, and a Problem
	}{
		{"even", map[string]int{"a": 3, "b": 3, "c": 3}, third, map[string]int{"a": 3, "b": 3, "c": 3}},
		{"uneven within bounds stays at home", map[string]int{"a": 6, "b": 5, "c": 5}, third, map[string]int{"a": 6, "b": 5, "c": 5}},
		{"one zone gives", map[string]int{"a": 9}, third, map[string]int{"a": 3, "b": 3, "c": 3}},
		{"by capacity", map[string]int{"a": 4, "b": 4}, map[string]float64{"a": 0.75, "b": 0.25}, map[string]int{"a": 6, "b": 2}},
		{"Pods in a zone without ready Nodes find a home", map[string]int{"a": 2, "b": 2, "c": 2},
			map[string]float64{"a": 0.5, "b": 0.5}, map[string]int{"a": 3, "b": 3}},
		{"fewer endpoints than zones", map[string]int{"a": 1, "b": 1}, third, nil},
		{"no shares", map[string]int{"a": 4, "b": 4}, nil, nil},
		{"a zone that is too small", map[string]int{"a": 2, "b": 2}, map[string]float64{"a": 0.98, "b": 0.01, "c": 0.01}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			service := testService()
			service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
			service.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
			in := Input{Service: service, Nodes: testNodes, Shares: Shares{ByZone: test.shares, Reason: "because"}}
			for zone, n := range test.pods {
				for range n {
					pod := testPod(len(in.Pods))
					pod.Spec.NodeName = fmt.Sprintf("node-%d", strings.Index("abc", zone)+1)
					in.Pods = append(in.Pods, pod)
				}
			}
			plan := Compute(in)
			list := apply(t, nil, plan)
			got := map[string]int{}
			for _, endpoint := range list[0].Endpoints {
				if endpoint.Hints != nil {
					got[endpoint.Hints.ForZones[0].Name]++
				}
			}
			if test.want == nil {
				test.want = map[string]int{}
				if len(plan.Problems) != 1 || plan.Problems[0].Reason != ReasonHintsUnavailable {
					t.Errorf("problems %v", plan.Problems)
				}
			}
			diff(t, "hints", test.want, got)
			in.Slices = list
			if again := Compute(in); !again.Empty() {
				t.Errorf("a second pass writes %d slices", again.Writes())
			}
		})
	}
}

func TestTopologyAutoKeepsHints(t *testing.T) {
	service := testService()
	service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	service.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Auto"}
	in := Input{Service: service, Pods: testPods(300), Nodes: testNodes,
		Shares: Shares{ByZone: map[string]float64{"a": 0.34, "b": 0.33, "c": 0.33}}}
	in.Slices = apply(t, nil, Compute(in))
	in.Pods = in.Pods[1:]
	if plan := Compute(in); plan.Writes() != 1 {
		t.Errorf("one Pod of 300 goes, and %d slices are written", plan.Writes())
	}
}

func TestTrafficDistributionOffRemovesHints(t *testing.T) {
	service := testService()
	service.Spec.TrafficDistribution = new("PreferSameZone")
	list, _ := computeOne(t, service, testPods(3)...)
	service.Spec.TrafficDistribution = nil
	list = apply(t, list, Compute(Input{Service: service, Pods: testPods(3), Slices: list, Nodes: testNodes}))
	for name, endpoint := range endpointsByName(t, list, discoveryv1.AddressTypeIPv4) {
		if endpoint.Hints != nil {
			t.Errorf("endpoint %s still has hints", name)
		}
	}
}
