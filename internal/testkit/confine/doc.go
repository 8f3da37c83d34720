// SPDX-License-Identifier: Apache-2.0

// Package confine keeps processes and network namespaces, such as etcd and the API
// server, from outliving a test binary or a benchmark.
//
//	go test ── test binary ── Pdeathsig ──> the same again: process 1 of new
//	           (Run waits)                  PID and mount namespaces
//	                                          ├─ etcd, kube-apiserver, …
//	                                          └─ /run/netns, of its own
//
// A deferred function or a signal handler cannot do that: a panic in another
// goroutine, a test's timeout and SIGKILL run neither. The kernel does it in every
// case: when process 1 of a PID namespace exits, the kernel kills the others there,
// and a mount namespace disappears with its last process, including what was bound
// in it. If the outer process dies, process 1 is killed.
//
// The outer process forwards SIGINT, SIGTERM and SIGQUIT, once each, so that a
// suite that cleans up by itself still does. It creates the directory for temporary
// files and removes it.
//
// Without root the PID namespace is created in a user namespace, where the user
// keeps their ID, and there is no mount namespace, because only root creates network
// namespaces. If the kernel allows neither, the program runs unconfined and
// reports that.
//
// Non-goals: isolation. Files and, without Network, the network are the host's.
package confine
