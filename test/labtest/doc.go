// SPDX-License-Identifier: Apache-2.0

// Package labtest is the common part of the end-to-end suites: a lab for the whole
// package, Services with addresses, requests from the LAN, and the node that answers
// for an address there.
//
//	var suite = labtest.Suite{Name: "e2e", Prepare: prepare}
//
//	func TestMain(m *testing.M) { suite.Main(m) }
package labtest
