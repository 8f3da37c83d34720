// SPDX-License-Identifier: Apache-2.0

// Package nfttest is nf_tables without a kernel, for tests: a Kernel takes the
// messages that package nft writes, and answers as Linux does.
//
//	kernel := nfttest.NewKernel()
//	conn := kernel.Conn()
//
// A transaction is applied whole or not at all; each message that is refused is
// answered by its number, and an element that is refused by its offset. ENOENT,
// EEXIST, EOPNOTSUPP, EBUSY and EINVAL come where the kernel has them: objects that
// are not there, that are there otherwise, that rules or elements refer to, keys of
// another length, ranges that overlap. Every transaction that changes anything has
// another generation, and dumps can be spoilt. TestContract has the same operations done to a Kernel and to
// Linux and compares what comes of each.
//
// With Faults, requests fail at random: before they are carried out, or behind it.
//
// Rules are not carried out: no packet meets them. They hold on to the chains and
// sets that they name.
package nfttest
