// SPDX-License-Identifier: Apache-2.0

// Package lab is a bare-metal Kubernetes cluster in network namespaces, on one
// Linux machine: for the demonstration, the end-to-end tests and benchmarks.
//
//	           host                │            the lab's own namespaces
//	                               │
//	causeway lab ── Pdeathsig ──────> init (process 1)
//	  │  127.0.0.1:port            │    └─ supervisor: control plane, machines
//	  └──── unix socket ─────────────────────┘    │
//	                               │              ├─ control-plane  192.0.2.10  etcd, API server, …
//	                               │   lan ───────┼─ node-1         192.0.2.11  kubelet ─ Pods
//	                               │   (bridge,   ├─ node-2         192.0.2.12
//	                               │    .1)       ├─ node-3         192.0.2.13
//	                               │              └─ client         192.0.2.100
//
// Enter starts a program again as the first process of new mount, PID and
// network namespaces, and of a user namespace when it is not run by root. All
// of the lab lives in there. When it ends, however it ends, the kernel kills
// every process in it and with them the network namespaces and mounts, so
// nothing can be left behind but a directory of logs.
//
// The control plane is real: programs of package controlplane, RBAC and Node
// authorization, certificates from the lab's own authority. Its machine is a
// node too, as in most bare-metal clusters, so that an agent there lets the API
// server reach webhooks by their ClusterIP. Nodes run the stand-in kubelet of
// package kubelet. Administrator's credentials exist in the supervisor and in
// the user's kubeconfig, and nowhere else.
//
// Invariants: no packet of the lab leaves its namespaces; nothing is written
// to the host's file system but the state directory; a machine that is powered
// off takes all its kernel state with it.
//
// Non-goals: resource limits, image builds, more than one lab in a process.
package lab
