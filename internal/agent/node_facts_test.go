// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/proxy/none"
)

// nodeWithFacts is node-1 as the kubelet and its helpers fill it.
func nodeWithFacts(uid types.UID) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: uid, Labels: map[string]string{corev1.LabelTopologyZone: "a", "rack": "7"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "2001:db8:244:1::/64"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.11"}}},
	}
}

// bare is a Node that was made anew and not filled yet.
func bare(uid types.UID) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: uid}}
}

func TestNodeFactsSurviveRecreation(t *testing.T) {
	type seen struct {
		Zone      string
		PodCIDRs  int
		Addresses int
		Eligible  bool
	}
	good := seen{"a", 2, 1, true}
	gone := good
	gone.Eligible = false
	tests := []struct {
		name string
		do   func(t *testing.T, f *feed)
		want seen
	}{
		{"deleted", func(t *testing.T, f *feed) { must(t, f.Delete(bare(""))) }, gone},
		{"deleted while the watch was broken", func(t *testing.T, f *feed) { must(t, f.Replace(nil, "")) }, gone},
		{"gone for several lists", func(t *testing.T, f *feed) {
			must(t, f.Replace(nil, ""))
			must(t, f.Replace(nil, ""))
		}, gone},
		{"made anew", func(t *testing.T, f *feed) {
			must(t, f.Delete(bare("")))
			must(t, f.Add(bare("uid-2")))
		}, good},
		{"made anew while the watch was broken", func(t *testing.T, f *feed) { must(t, f.Replace([]any{bare("uid-2")}, "")) }, good},
		{"made anew, and filled bit by bit", func(t *testing.T, f *feed) {
			must(t, f.Delete(bare("")))
			n := bare("uid-2")
			must(t, f.Add(n.DeepCopy()))
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.12"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::12"}}
			must(t, f.Update(n.DeepCopy()))
			n.Spec.Taints = []corev1.Taint{{Key: "node.kubernetes.io/not-ready"}}
			must(t, f.Update(n.DeepCopy()))
		}, seen{"a", 2, 2, true}},
		{"made anew with others", func(t *testing.T, f *feed) {
			must(t, f.Delete(bare("")))
			n := bare("uid-2")
			must(t, f.Add(n.DeepCopy()))
			n.Labels = map[string]string{corev1.LabelTopologyZone: "b"}
			n.Spec.PodCIDR = "10.244.9.0/24"
			must(t, f.Update(n.DeepCopy()))
		}, seen{"b", 1, 1, true}},
		{"the same Node says otherwise", func(t *testing.T, f *feed) {
			n := nodeWithFacts("uid-1")
			n.Labels = nil
			must(t, f.Update(n))
		}, seen{"", 2, 1, true}},
		{"made anew, and its zone taken away again", func(t *testing.T, f *feed) {
			n := bare("uid-2")
			must(t, f.Update(n.DeepCopy()))
			n.Labels = map[string]string{corev1.LabelTopologyZone: "b"}
			must(t, f.Update(n.DeepCopy()))
			n.Labels = nil
			must(t, f.Update(n.DeepCopy()))
		}, seen{"", 2, 1, true}},
	}
	for _, self := range []string{"node-1", "node-2"} {
		for _, tc := range tests {
			t.Run(tc.name+", seen by "+self, func(t *testing.T) {
				idle, err := none.New(none.Config{})
				must(t, err)
				a, err := New(Config{Node: model.Node{Name: self}, REST: &rest.Config{Host: "http://192.0.2.10"}, Backend: idle})
				must(t, err)
				a.store.Listen(a.changed)
				f := a.store.nodeFeed()
				must(t, f.Replace([]any{nodeWithFacts("uid-1")}, ""))
				tc.do(t, f)
				n := a.store.Node("node-1")
				if (n == nil) != (self != "node-1" && !tc.want.Eligible) {
					t.Fatalf("Node %+v", n)
				}
				if n == nil {
					return // others forget who is gone
				}
				got := seen{n.Labels[corev1.LabelTopologyZone], len(podCIDRs(n)), len(internalIPs(n)), eligible(n)}
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Errorf("facts (-want +got):\n%s", diff)
				}
				if self == "node-1" {
					m := a.modelNode()
					if m.Zone != tc.want.Zone || len(m.PodCIDRs) != tc.want.PodCIDRs {
						t.Errorf("the proxy has zone %q, ranges %v", m.Zone, m.PodCIDRs)
					}
				}
			})
		}
	}
}

// A node whose object is gone still announces, the last of all.
func TestDeletedNodeAnnouncesLast(t *testing.T) {
	s := NewStore()
	s.self = "node-1"
	fill(t, s, nodeWithFacts("uid-1"))
	must(t, s.nodeFeed().Delete(bare("")))
	var b snapshotter
	snap, _ := b.make(s, false, true)
	if len(snap.Nodes) != 1 || !snap.Nodes[0].Deleting || snap.Nodes[0].Labels["rack"] != "7" {
		t.Fatalf("nodes %+v", snap.Nodes)
	}
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("192.0.2.11")}, snap.Nodes[0].InternalIPs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if _, changed := b.make(s, false, true); changed {
		t.Error("the same Store counts as changed")
	}
}
