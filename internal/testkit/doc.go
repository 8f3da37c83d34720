// SPDX-License-Identifier: Apache-2.0

// Package testkit is how tests wait: for a condition (Eventually), or for as
// long as one must hold (Consistently).
//
// The packages below are what the tests and benchmarks of several packages
// share. They may import what they test, and the lab; no product may import
// them, which package arch checks.
//
//	nstest           tests in network namespaces, and in the virtual machine
//	confine          lets nothing outlive a test binary
//	modeltest        random clusters
//	nfttest          nf_tables without a kernel
//	flowmatrix       the flows that every proxy mode passes
//	backendtest      the contract of proxy modes
//	announcetest     a LAN with announcers
//	provisionertest  the contract of provisioners
//	reference        compares docs/reference.md with the programs
//	reference        compares docs/reference.md with the programs
//
// Testkit itself imports nothing but the standard library, so that every test may
// use it. Where only clocks decide, use testing/synctest: its bubbles need no
// waiting. Suites of ginkgo wait with gomega.
package testkit
