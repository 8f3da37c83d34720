// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a small stand-in for the kubelet: enough of one that
// Deployments, DaemonSets and Jobs work in the lab, with real processes and
// real packets.
//
//	Pods of this node (watch) ─> one worker a Pod ─> network, volumes, containers
//	                                   │                       │
//	            status (patch)  <──────┴──── probes <──────────┘
//
// It runs as the first process of its node, in the node's network namespace,
// and talks to the API server over the node's own link with the node's own
// certificate, under the Node authorizer. Containers are its children: when it
// is killed, the kernel kills the whole node at once, like a power cut.
//
// What it does as the real one: registration and leases, projected tokens bound
// to the Pod, the volumes that don't need a driver, downward API, init
// containers, the three probes (HTTP, TCP, exec), lifecycle hooks, restart
// policy, graceful deletion, hostNetwork, security contexts as far as they
// concern users and capabilities, logs through the API server.
//
// What it does faster, since tests wait for it: a probe that has not succeeded
// yet runs every quarter of a second, and the restart back-off begins at a
// quarter of a second and ends at ten.
//
// Non-goals: images (a table maps their names to programs of the host),
// resource limits, exec and port-forward streams, device and CSI volumes.
package kubelet
