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

// hostAddresses returns the Node's own addresses, sorted.
func hostAddresses(node *corev1.Node) []netip.Addr {
	addrs := addressesOf(node, corev1.NodeInternalIP, corev1.NodeExternalIP)
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// internalIPs returns a Node's InternalIPs; node may be nil.
func internalIPs(node *corev1.Node) []netip.Addr { return addressesOf(node, corev1.NodeInternalIP) }

// addressesOf returns a Node's addresses of the types, those that parse.
func addressesOf(node *corev1.Node, types ...corev1.NodeAddressType) (addrs []netip.Addr) {
	if node == nil {
		return nil
	}
	for _, a := range node.Status.Addresses {
		if ip, ok := netaddr.Parse(a.Address); ok && slices.Contains(types, a.Type) {
			addrs = append(addrs, ip)
		}
	}
	return addrs
}

// podCIDRs returns the ranges of the Node's Pods.
func podCIDRs(node *corev1.Node) []netip.Prefix {
	raws := node.Spec.PodCIDRs
	if len(raws) == 0 && node.Spec.PodCIDR != "" {
		raws = []string{node.Spec.PodCIDR}
	}
	return netaddr.ParsePrefixes(raws)
}

// toBeDeletedTaint marks a node that the cluster autoscaler is about to remove.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// networkUnavailable reports whether the node's routes to the others' Pods are not
// set up, as cloud providers and some network plug-ins report.
func networkUnavailable(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeNetworkUnavailable && c.Status == corev1.ConditionTrue
	})
}

// eligible reports whether load balancers should send here, as far as the Node
// object tells.
func eligible(node *corev1.Node) bool {
	return node != nil && node.DeletionTimestamp == nil &&
		!slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == toBeDeletedTaint })
}
