// SPDX-License-Identifier: Apache-2.0

// Package nft speaks the nf_tables netlink protocol: it writes transactions,
// reads tables back and listens to other people's changes.
//
// It exists beside github.com/google/nftables, whose expression encoders it
// uses, for what a rule set made of hundreds of thousands of elements needs:
//
//   - a Batch is one flat buffer, so a transaction of 300,000 elements costs
//     one allocation and one sendmsg;
//   - no attribute ever overflows its 16-bit length: elements are split over
//     as many messages as they need, all in the same transaction;
//   - only the last message asks for an acknowledgement, so a transaction
//     costs the kernel one reply, or one for each refused message;
//   - read-back yields raw bytes, so a comparison needs no decoding.
//
// # Transaction
//
//	sendmsg: BATCH_BEGIN | NEWTABLE | NEWSETELEM ... | NEWSETELEM(ACK) | BATCH_END
//	recvmsg: NLMSG_ERROR(seq n, errno) ...             NLMSG_ERROR(seq last, 0)
//
// The kernel applies all of a batch or nothing. A refused message is reported
// as an *Error that names it.
//
// # Non-goals
//
// No knowledge of Services, no rule parser, no objects other than tables,
// chains, rules, sets and elements.
package nft
