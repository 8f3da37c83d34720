// SPDX-License-Identifier: Apache-2.0

// Package kubelet is a small substitute for the kubelet: enough for Deployments,
// DaemonSets and Jobs to work in the lab, with real processes and real packets.
//
//	Pods of this node (watch) ─> one worker per Pod ─> network, volumes, containers
//	                                   │                         │
//	            status (patch)  <──────┴──── probes <────────────┘
//
// It runs as the first process of its node, in the node's network namespace,
// and talks to the API server over the node's own link with the node's own
// certificate, under the Node authorizer. Containers are its children: when it
// is killed, the kernel kills the whole node at once, like a power cut.
//
// Like the kubelet it does: registration and leases, projected tokens bound to the
// Pod, the volumes that don't need a driver, downward API, init containers, the
// three probes (HTTP, TCP, exec), lifecycle hooks, restart policy, graceful deletion,
// hostNetwork, users and capabilities of security contexts, logs through the API
// server.
//
// It is faster where tests wait: a probe that has not succeeded yet runs every
// quarter of a second, and the restart backoff starts at a quarter of a second and
// ends at ten.
//
// Non-goals: images (a table maps their names to programs of the host),
// resource limits, exec and port-forward streams, device and CSI volumes.
package kubelet
