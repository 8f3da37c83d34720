// SPDX-License-Identifier: Apache-2.0

// Package modes chooses the backend that a node uses, and changes from one to
// another.
//
//	asked for     tried in this order
//	auto          nftables, iptables, userspace
//	nftables      nftables
//	iptables      iptables
//	ipvs          ipvs, nftables, iptables, userspace
//	userspace     userspace
//	none          none: somebody else forwards
//
// What a kernel can do shows when it is asked to: the first Sync of a candidate
// that ends in an UnsupportedError is followed by the next candidate's, with
// the same Desired. Any other error is the candidate's own to retry. From the
// first success on the choice is fixed for the life of the process.
//
// # Changing modes
//
// After the first success the objects of the modes that were not chosen are
// removed: first the new mode works, for every packet that is on its way, then the
// old one goes. Ahead of that the tables of userspace yield: what they capture while no
// proxy listens must not be noted by connection tracking as not translated, for IPVS
// would serve it as that. Connections of
// nftables and iptables are the kernel's connection tracking's, which goes on
// translating them as long as any of the two is there. Those of ipvs are its
// own: its objects stay behind, without new connections, until those have
// ended; then flows by UDP are handed over, ahead of its objects' removal.
//
// Objects go in an order in which no packet meets half of them: first what
// packets come in by, then, when those that came in have left, the rest. A table
// of nf_tables that is deleted whole would refuse what it serves while it goes
// (internal/netlink/nft, RemoveTables).
package modes
