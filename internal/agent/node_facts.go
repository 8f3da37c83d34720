// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Node object has two kinds of content: what is wanted of the node (taints, cordon,
// most labels), and facts of the machine: its addresses, its Pods' ranges, its place.
// When the object is deleted, or is created again and filled step by step (by the
// kubelet, the node controller, the cloud provider), the machine is still the same and
// its Pods run. So the facts stay until a Node of that name has others.

// maxFormer bounds the deleted Nodes that are remembered in case they are created again,
// which takes seconds.
const maxFormer = 256

// machineLabels are labels that are facts of the machine.
var machineLabels = []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelHostname}

// Facts of a Node, in addition to its machineLabels.
const (
	factPodCIDRs  = "podCIDRs"
	factAddresses = "addresses"
)

// inherit adds to n, which is not shared yet, the facts that it lacks and that the Node
// before it has, and returns which. had are those that before inherited itself: a fact
// that the same Node had of its own, and has no longer, is not inherited.
func inherit(n, before *corev1.Node, had map[string]bool) (has map[string]bool) {
	take := func(fact string, says, said bool) bool {
		if says || !said || before.UID == n.UID && !had[fact] {
			return false
		}
		if has == nil {
			has = map[string]bool{}
		}
		has[fact] = true
		return true
	}
	if take(factPodCIDRs, len(podCIDRs(n)) > 0, len(podCIDRs(before)) > 0) {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = before.Spec.PodCIDR, before.Spec.PodCIDRs
	}
	if take(factAddresses, len(internalIPs(n)) > 0, len(internalIPs(before)) > 0) {
		n.Status.Addresses = before.Status.Addresses
	}
	own := n.Labels // the reflector's
	for _, label := range machineLabels {
		_, says := own[label]
		value, said := before.Labels[label]
		if !take(label, says, said) {
			continue
		}
		labels := map[string]string{label: value}
		maps.Copy(labels, n.Labels)
		n.Labels = labels
	}
	return has
}

// leaving returns what stays of this node's own object after it was deleted: the facts,
// and that load balancers should not send here.
func leaving(n *corev1.Node) *corev1.Node {
	out := *n
	now := metav1.Now()
	out.DeletionTimestamp = &now
	return &out
}
