// SPDX-License-Identifier: Apache-2.0

// Package demo is what `causeway lab up` and `causeway lab demo` do inside of
// a lab: install Causeway, show a LoadBalancer Service from manifest to packet,
// take its node away, and tell a person about it.
//
//	Run (outside) ─ lab.Enter ─> supervisor (inside): Start ─ install ─ demonstrate ─ wait
//
// Invariants: nothing is reported that was not seen in packets or in the API;
// the demonstration fails at the first thing that doesn't hold.
//
// Non-goals: tests of anything but the one story; those are in test/e2e.
package demo
