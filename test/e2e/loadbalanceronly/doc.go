// SPDX-License-Identifier: Apache-2.0

// Package loadbalanceronly tests config/overlays/loadbalancer-only in a lab of its
// own: kube-controller-manager manages the EndpointSlices, and a real kube-proxy
// forwards, in iptables and in nftables mode, while Causeway assigns and announces
// addresses. Clients are on the LAN. Then Causeway takes the nodes over from
// kube-proxy, and hands them back.
package loadbalanceronly
