// SPDX-License-Identifier: Apache-2.0

// Package lab is a bare-metal Kubernetes cluster in network namespaces, on one
// Linux machine: for the demonstration, the end-to-end tests and benchmarks.
//
//	           host                │            the lab's own namespaces
//	                               │
//	causeway-lab ── Pdeathsig ──────> init (process 1)
//	  │  127.0.0.1:port            │    └─ supervisor: control plane, machines
//	  └──── unix socket ─────────────────────┘    │
//	                               │              ├─ control-plane  192.0.2.10  etcd, API server, …
//	                               │   lan ───────┼─ node-1         192.0.2.11  kubelet ─ Pods
//	                               │   (bridge,   ├─ node-2         192.0.2.12
//	                               │    .1)       ├─ node-3         192.0.2.13
//	                               │              └─ client         192.0.2.100
//
// Enter starts a program again as the first process of new mount, PID and
// network namespaces, and of a user namespace unless root runs it. The whole lab
// lives in these namespaces. When the process exits, for whatever reason, the kernel
// kills every process in them and removes the network namespaces and mounts, so only
// a directory of logs can be left behind.
//
// The control plane is real: programs of package controlplane, RBAC and Node
// authorization, certificates from the lab's own CA. Its machine is also a node, as
// in most bare-metal clusters, so that an agent there lets the API server reach
// webhooks at their ClusterIP. Nodes run the kubelet substitute of package kubelet.
// Administrator's credentials exist only in the supervisor and in the user's
// kubeconfig.
//
// Invariants: no packet of the lab leaves its namespaces; the lab writes only the
// state directory in the host's file system; a machine that is powered off loses all
// its kernel state.
//
// Non-goals: resource limits, image builds, more than one lab in a process.
package lab
