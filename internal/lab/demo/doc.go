// SPDX-License-Identifier: Apache-2.0

// Package demo is what `causeway-lab up` and `causeway-lab demo` do inside a lab:
// install Causeway, show a LoadBalancer Service from manifest to packet, remove its
// node, and print each step.
//
//	Run (outside) ─ lab.Enter ─> supervisor (inside): Start ─ install ─ demonstrate ─ wait
//
// Invariants: the demonstration reports only what it saw in packets or in the API;
// it fails at the first step that does not work.
//
// Non-goals: tests beyond this one scenario; those are in test/e2e.
package demo
