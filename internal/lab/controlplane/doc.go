// SPDX-License-Identifier: Apache-2.0

// Package controlplane gives the programs of a real Kubernetes control plane:
// etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, and
// kube-proxy as a peer to measure against.
//
// Nothing is downloaded as a binary. The module in test/controlplane pins the
// versions; the Go toolchain builds each program once from its ordinary Go
// module and keeps it in the user's cache, under a key made of that module's
// go.mod and go.sum, the Go version and the platform:
//
//	test/controlplane/go.{mod,sum} ─┐
//	go version, GOOS/GOARCH ────────┴─ key ─> <cache>/causeway/controlplane/<key>/kube-apiserver
//
// A directory named by KUBEBUILDER_ASSETS comes first when it holds every
// program asked for.
//
// Invariants: a file in the cache is always whole (built beside and renamed);
// two processes never build the same key at once (flock).
//
// Non-goals: starting the programs. envtest and internal/lab do that.
package controlplane
