// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A Node object says two kinds of things: what somebody wants of the node (taints,
// cordon, most labels), and what the machine is: its addresses, its Pods' ranges,
// where it stands. When the object goes, or is made anew and filled bit by bit
// (by the kubelet, the node controller, the cloud provider), the machine is still
// the same, and its Pods run. So what the machine is stays until a Node of that
// name says otherwise.

// maxFormer bounds the deleted Nodes that are remembered; they are for Nodes made
// anew, which takes seconds.
const maxFormer = 256

// machineLabels are labels that are facts of the machine.
var machineLabels = []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelHostname}

// Facts of a Node beside its machineLabels.
const (
	factPodCIDRs  = "podCIDRs"
	factAddresses = "addresses"
)

// inherit fills n, which nobody has seen yet, with what it does not say of the
// machine and a Node of that name said before, and gives what that is. had is what
// before itself had so. A Node that said something itself and does not any more
// says otherwise.
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

// leaving is what stays of this node's own object after that was deleted: the
// facts, and that load balancers should look for another node.
func leaving(n *corev1.Node) *corev1.Node {
	out := *n
	now := metav1.Now()
	out.DeletionTimestamp = &now
	return &out
}
