// SPDX-License-Identifier: Apache-2.0

// Package controlplane provides the programs of a real Kubernetes control plane:
// etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, and
// kube-proxy as a peer to measure against.
//
// Nothing is downloaded as a binary. The module in test/controlplane pins the
// versions; the Go toolchain builds each program once from its Go module and stores
// it in the user's cache, under a key derived from that module's go.mod and go.sum,
// the Go version and the platform:
//
//	test/controlplane/go.{mod,sum} ─┐
//	go version, GOOS/GOARCH ────────┴─ key ─> <cache>/causeway/controlplane/<key>/kube-apiserver
//
// The directory in KUBEBUILDER_ASSETS takes precedence if it contains every
// requested program.
//
// Invariants: a file in the cache is always complete (built next to it and renamed);
// two processes never build the same key at the same time (flock).
//
// Non-goals: starting the programs. envtest and internal/lab do that.
package controlplane
