// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy finds and removes what kube-proxy leaves in a node's kernel
// when it stops, in each of its modes:
//
//	iptables   chains KUBE-* in the tables nat, filter and mangle, and jumps to them
//	nftables   the tables "ip kube-proxy" and "ip6 kube-proxy"
//	ipvs       some of those chains, ip sets KUBE-*, the interface kube-ipvs0 with
//	           every Service's address, virtual servers
//
// # What provably belongs to kube-proxy
//
// Names that only kube-proxy uses, each confirmed by a second property: a jump has
// kube-proxy's comment, a table has its chains, an interface is a dummy. A virtual
// server has no name. It is kube-proxy's if its address is on kube-ipvs0, or if it is
// at an address of the node and a port in one of the sets of NodePorts, and if it
// lacks the flag of package ipvs. If kube-proxy was stopped before it filled those
// sets, a port in the default NodePort range is sufficient if all real servers belong
// to Services.
//
// The kubelet's chains (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT)
// stay, and so does a chain that another program's rule jumps to, with all chains
// reachable from it.
//
// # Connections
//
// Connections of the modes iptables and nftables are in connection tracking: they
// continue without the rules. Connections of ipvs need the virtual server and a local
// address. Both are removed last, when their connections have ended:
//
//	addresses           each becomes a local route, so that it stays local but the
//	                    node no longer uses it as the source of connections (as it
//	                    does if an interface has the address)
//	tables and chains   new connections no longer use them
//	flows that ended    otherwise a connection from the same port would match them
//	wait                until no virtual server has an established connection and
//	                    no socket of the node is bound to such an address
//	the rest            servers, their flows, routes, sets, and the interface last:
//	                    while it exists, the next call knows that it must continue
//
// Connections that have not ended after Config.Drain are cut off.
package kubeproxy
