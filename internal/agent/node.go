// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// modelNode joins Config.Node with the Node object, which may be nil.
func (c *Config) modelNode(node *corev1.Node, dead []string) model.Node {
	n := c.Node
	n.DeadNodes = slices.Sorted(slices.Values(dead))
	if node == nil {
		return n
	}
	n.Addresses = hostAddresses(node)
	n.Zone = node.Labels[corev1.LabelTopologyZone]
	if len(n.PodCIDRs) == 0 && len(n.PodInterfaces) == 0 {
		n.PodCIDRs = podCIDRs(node)
	}
	return n
}

// hostAddresses are the Node's own, those that parse, sorted.
func hostAddresses(node *corev1.Node) []netip.Addr {
	var as []netip.Addr
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP && a.Type != corev1.NodeExternalIP {
			continue
		}
		if ip, ok := netaddr.Parse(a.Address); ok {
			as = append(as, ip)
		}
	}
	slices.SortFunc(as, netip.Addr.Compare)
	return slices.Compact(as)
}

// podCIDRs are the Node's, those that parse.
func podCIDRs(node *corev1.Node) []netip.Prefix {
	raws := node.Spec.PodCIDRs
	if len(raws) == 0 && node.Spec.PodCIDR != "" {
		raws = []string{node.Spec.PodCIDR}
	}
	var ps []netip.Prefix
	for _, raw := range raws {
		if p, ok := netaddr.ParsePrefix(raw); ok {
			ps = append(ps, p)
		}
	}
	return ps
}

// toBeDeletedTaint marks a node that the cluster autoscaler is about to remove.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// networkUnavailable says whether the node's routes to the others' Pods are not
// set up, as cloud providers and some network plug-ins report.
func networkUnavailable(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionTrue
	})
}

// eligible says whether load balancers should send here, as far as the Node
// object tells.
func eligible(node *corev1.Node) bool {
	return node != nil && node.DeletionTimestamp == nil &&
		!slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeletedTaint })
}
