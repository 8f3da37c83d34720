// SPDX-License-Identifier: Apache-2.0

// Package inspect compares what a node should do for Services with what its kernel
// does, and follows packets through either.
//
//	Desired ──Expected──> State ─┐
//	                             ├─ Diff  ─> Differences
//	kernel ──mode's Inspect──> State ─┤
//	                             └─ Trace ─> Path
//
// State says what one kernel has, in terms that all proxy modes share, with the
// element, rule, virtual server or listener behind each fact. The reader of each mode
// (file inspect.go) fills it in and changes nothing.
//
// Modes differ in what they can do: Mode lists how. Expected gives the State that a
// mode is to reach, so Diff is a comparison of two States, and one Trace serves for
// "what should happen" as well as for "what does happen".
//
// The package is pure: it imports packages model and netip, and no mode, no netlink,
// no client. Facts that belong to no Service (the constant rules of a mode) are
// compared by the reader, which reports them as Faults.
package inspect
