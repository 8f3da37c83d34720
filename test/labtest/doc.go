// SPDX-License-Identifier: Apache-2.0

// Package labtest is what the end-to-end suites have in common: a lab for the
// whole package, Services with addresses, requests from the LAN, and who answers
// for an address there.
//
//	var suite = labtest.Suite{Name: "e2e", Prepare: prepare}
//
//	func TestMain(m *testing.M) { suite.Main(m) }
package labtest
