// SPDX-License-Identifier: Apache-2.0

// Package inspect compares what a node should do for Services with what its kernel
// does, and follows packets through either.
//
//	Desired ── Expected ──> State ──┬── Diff  ──> Differences
//	kernel ─── Inspect ───> State ──┴── Trace ──> Path
//
// State says what one kernel has, in terms that all proxy modes share, with the
// element, rule, virtual server or listener behind each fact. The reader of each mode
// (file inspect.go) fills it in and changes nothing.
//
// Modes differ in what they can do: Mode says how. Expected returns the State that a
// mode is to reach, so Diff compares two States, and one Trace serves for what should
// happen as well as for what does happen.
//
// The package is pure: of this module it imports package model alone, no mode, no
// netlink and no client. Facts that belong to no Service (the constant rules of a mode,
// its routes) are compared by the reader, which reports them as Faults.
//
// Not found: elements to which no frontend leads, and rules of nf_tables that were
// changed in place where only their number is known (mode nftables).
package inspect
