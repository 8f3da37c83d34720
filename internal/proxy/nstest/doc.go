// SPDX-License-Identifier: Apache-2.0

// Package nstest runs tests in a network namespace of their own, and gives
// them more of them: nodes, Pods and clients on veth cables. Only tests
// import it.
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
//
// runs the whole test process in a fresh namespace, so that every socket of
// every goroutine is in it and nothing outside is touched. Namespaces made
// with New belong to child processes and go when the test ends, however it
// ends.
//
// A test that this kernel cannot run calls LeaveToVM: the same program then runs
// it in the virtual machine of test/vm, and the package passes only if it
// passed there.
package nstest
