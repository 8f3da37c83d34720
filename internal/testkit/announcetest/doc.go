// SPDX-License-Identifier: Apache-2.0

// Package announcetest is a LAN in network namespaces with announcers on it, for
// tests and benchmarks of package announce.
//
//	 bridge "lan" (192.0.2.0/24, 2001:db8:0:1::/64)
//	   |        |        |          |
//	node-1   node-2   node-3     client      each its own namespace
//	   |        |        |
//	 bridge "mgmt" (198.51.100.0/24)         gossip, if Options.Management
//
// Each node's Speaker is a process of its own in the node's namespace: the same
// executable started again (package reexec), which gets its configuration as JSON
// lines on standard input and reports as JSON lines on standard output. So it can be
// killed as a node's agent is killed.
//
// Each node also has the announced addresses on its loopback interface and echoes
// UDP there, whether or not its Speaker runs, as a node's kernel forwards whether or
// not its agent runs. arp_ignore keeps the kernel from answering ARP itself.
package announcetest
