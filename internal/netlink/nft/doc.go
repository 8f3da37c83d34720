// SPDX-License-Identifier: Apache-2.0

// Package nft speaks the nf_tables netlink protocol: it writes transactions,
// reads tables back and listens to changes by other processes.
//
// # Beside google/nftables
//
// Its expression encoders are used. A Batch and a Conn of their own are here for
// what a rule set made of hundreds of thousands of elements needs:
//
//   - a Batch is one flat buffer, sent as it is: 20,000 elements of a map cost some
//     3.4 us each, the kernel's work included, and 4 allocations that are the
//     caller's; with google/nftables v0.3.0 they cost 5.4 us each and allocate 27 MB
//     (BenchmarkElements, the fastest of three);
//   - no attribute ever overflows its 16-bit length: elements are split over
//     as many messages as they need, all in the same transaction;
//   - only the last message asks for an acknowledgement, so a transaction
//     costs the kernel one reply, or one for each refused message, which names the
//     element;
//   - reading back yields raw bytes, so a comparison needs no decoding, and
//     notices what a change meanwhile has spoilt.
//
// # Transaction
//
//	sendmsg: BATCH_BEGIN | NEWTABLE | NEWSETELEM ... | NEWSETELEM(ACK) | BATCH_END
//	recvmsg: NLMSG_ERROR(seq n, errno) ...             NLMSG_ERROR(seq last, 0)
//
// The kernel applies all of a batch or nothing. A refused message is reported
// as an *Error that names it.
//
// # Imports
//
// Nothing of this module but netlink and netlink/attributes. Tests that need no kernel
// use testkit/nfttest, which is held to what Linux does.
//
// # Non-goals
//
// No knowledge of Services, no rule parser, no objects other than tables,
// chains, rules, sets and elements.
package nft
