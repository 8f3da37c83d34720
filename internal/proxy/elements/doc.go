// SPDX-License-Identifier: Apache-2.0

// Package elements is what the modes ipvs and userspace have in common: a table of
// nf_tables a family, whose rules depend on the node alone, and whose sets and maps
// follow the Services.
//
//	ID, Map     elements as they are rendered: with their family and set
//	Tables      writes them, and reads them back
//	Found       says what they mean, for Inspect of these modes and of nftables
//
// It imports packages model, inspect and netlink/nft, and no mode.
package elements
