// SPDX-License-Identifier: Apache-2.0

// Package confine lets nothing outlive a test binary or a benchmark: no
// etcd, no API server, no network namespace.
//
//	go test ── test binary ── Pdeathsig ──> the same again: process 1 of new
//	           (Run waits)                  PID and mount namespaces
//	                                          ├─ etcd, kube-apiserver, …
//	                                          └─ /run/netns, of its own
//
// A deferred function or a signal handler cannot do that: a panic in another
// goroutine, a test's time-out and SIGKILL run none. The kernel does it whatever
// happens: when process 1 of a PID namespace ends, it kills the others there,
// and a mount namespace goes with its last process, and with it what was bound
// there. If the outer process dies, process 1 is killed.
//
// The outer process hands SIGINT, SIGTERM and SIGQUIT on, once each, so that a
// suite that tidies up by itself still does. It makes the directory for
// temporary files and removes it.
//
// Without root the PID namespace is made in a user namespace, where the user
// keeps their ID, and there is no mount namespace: only root makes network
// namespaces. Where the kernel allows neither, the program runs as it is, and
// says so.
//
// Non-goals: isolation. Files and, without Network, the network are the host's.
package confine
