// SPDX-License-Identifier: Apache-2.0

// Package loadbalanceronly tests config/overlays/loadbalancer-only in a lab of
// its own: a cluster whose EndpointSlices are kube-controller-manager's and
// whose packets a real kube-proxy forwards, in iptables and in nftables mode,
// while Causeway hands out addresses and announces them. Clients are on the
// LAN. Then Causeway takes the nodes over from kube-proxy, and hands them back.
package loadbalanceronly
