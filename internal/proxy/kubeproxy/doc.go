// SPDX-License-Identifier: Apache-2.0

// Package kubeproxy finds and removes what kube-proxy leaves in a node's kernel
// when it stops, in each of its modes:
//
//	iptables   chains KUBE-* in the tables nat, filter and mangle, and jumps to them
//	nftables   the tables "ip kube-proxy" and "ip6 kube-proxy"
//	ipvs       some of those chains, ip sets KUBE-*, the interface kube-ipvs0 with
//	           every Service's address, virtual servers
//
// # What is proved to be kube-proxy's
//
// Names that it alone uses, and for each something else that has to agree: a
// jump carries its comment, a table has its chains, an interface is a dummy
// one. A virtual server has no name. It is kube-proxy's if its address is
// kube-ipvs0's, or it is at an address of the node and a port that is in one of
// the sets of NodePorts; never with the flag that package ipvs puts on its own.
// Where kube-proxy was stopped before it filled those sets, a port of the default
// range of NodePorts will do if all real servers are those of Services.
//
// The kubelet's chains (KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT)
// stay, and so does a chain that somebody else's rule jumps to, with all that it
// leads to.
//
// # Connections
//
// Those of the modes iptables and nftables are connection tracking's: they go
// on without the rules. Those of ipvs need the virtual server, and the address
// to be local. So these go last, when their connections have ended:
//
//	addresses           each becomes a local route, so that it goes on being local
//	                    and the node stops using it as the source of connections
//	                    (it does, with an interface that has the address)
//	tables and chains   new connections are no longer theirs
//	flows that ended    or a connection from the same port would be one of them
//	wait                until no virtual server has an established connection and
//	                    no socket of the node is bound to such an address
//	the rest            servers, flows of theirs, routes, sets, the interface last:
//	                    while it is there, the next call knows that it has to go on
//
// Whatever has not ended after Config.Drain is cut off.
package kubeproxy
