// SPDX-License-Identifier: Apache-2.0

// Package network builds the lab's machines from network namespaces: it creates
// them, connects them with veth pairs and bridges, and runs code inside them.
//
//	  lan ──────── bridge br0 ─────────┐
//	   │ veth        │ veth            │ veth
//	 eth0          eth0              eth0
//	client        node-1            node-2
//	                │ one veth per Pod, routed, no bridge
//	              eth0
//	               pod
//
// Pods are connected to their node by routes (/32 and /128), so that a packet between
// two Pods of one node passes the node's forwarding path, including NAT.
//
// Invariants: a Namespace's sockets, once opened, stay in it whichever thread
// uses them; Do always returns its thread in the namespace it came from, or ends
// the thread.
//
// Non-goals: address management, anything outside the process's own mount and
// network namespaces.
package network
