// SPDX-License-Identifier: Apache-2.0

// Command vm runs one static program as root in a small virtual machine and
// exits with its exit status, so that a test can use features that the host's kernel
// lacks (IPVS, dummy interfaces, netem, an older nftables):
//
//	go build -o bin/vm ./test/vm
//	CGO_ENABLED=0 go test -exec "$PWD/bin/vm" ./internal/proxy/ipvs
//
// The machine is QEMU with Debian's cloud kernel, an initramfs with that
// kernel's network modules, busybox, and the program; it has no disk and no
// network device. It uses KVM if a trial shows that KVM works, otherwise software
// emulation, with which it boots in about three seconds.
//
//	host                                     guest
//	bin/vm --- qemu --- ttyS0: console.log <-- kernel messages
//	               |--- ttyS1: stdout      <-- the program's stdout and stderr
//	               `--- ttyS2: status      <-- the program's exit status
//
// Three serial lines separate the streams: a kernel message never appears in the
// program's output, and the program can't forge its exit status by printing it. The
// console is shown only if the machine ends without a status.
//
// The kernel and the initramfs are built once, below $CAUSEWAY_CACHE or the
// user's cache directory. Any number of machines may start and run concurrently.
//
// The program finds its arguments, HOME=/, REQUIRE_KERNEL=1, IN_TEST_VM=1, the
// variables named by -env, the testdata directory of the working directory, and
// the host programs named by -programs with the libraries that they load. It
// does not see the rest of the host's files, and files that it writes are lost.
//
// With -count the machine has one emulated CPU whose clock advances one nanosecond
// per instruction. A benchmark's ns/op are then instructions/op, reproducible within
// 1-2 % however busy the host is.
//
// The machine never outlives this program, nor this program its parent, even if
// they are killed with SIGKILL.
package main
