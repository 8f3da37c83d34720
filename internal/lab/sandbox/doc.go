// SPDX-License-Identifier: Apache-2.0

// Package sandbox starts processes in namespaces of their own: the lab's
// container runtime.
//
//	Start(Spec) ── clone(NEWNS|NEWPID|NEWUTS|NEWIPC) ──> shim (this executable again)
//	     │                                                │ setns(network)
//	     │                                                │ build root, mount, pivot_root
//	     │                                                │ drop capabilities, setuid, seccomp
//	     │ <───────── error, or end of file ────────────  │ execve
//	     v                                                v
//	  Process                                        the program
//
// A process with a Root gets a file system of its own: the host's programs and
// libraries read-only (there are no images to unpack), everything else a tmpfs,
// plus the Spec's mounts. It sees neither the user's files nor the lab's. A
// process without a Root, such as a node, keeps the host's files.
//
// Invariants: the program is process 1 of its PID namespace, so killing it
// kills everything it started; nothing is written to the host's file system;
// when Start returns without an error, the program runs.
//
// Non-goals: cgroups, images. The sandbox is for tests of networking; it is not a
// security boundary against hostile programs.
package sandbox
