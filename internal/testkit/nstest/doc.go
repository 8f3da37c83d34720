// SPDX-License-Identifier: Apache-2.0

// Package nstest runs tests in a network namespace of their own, and provides
// further namespaces: nodes, Pods and clients, connected by veth pairs. Only tests
// import it.
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
// runs the whole test process in a new namespace, so that every socket of every
// goroutine is in it and nothing outside is touched. Namespaces created with New
// belong to child processes and disappear when the test ends, for whatever reason.
//
// A test that this kernel cannot run calls LeaveToVM: the same program then runs
// it in the virtual machine of test/vm, and the package passes only if the test
// passed there.
package nstest
