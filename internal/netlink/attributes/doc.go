// SPDX-License-Identifier: Apache-2.0

// Package attributes encodes and decodes netlink attributes (struct nlattr): a
// type, a length of 16 bits and a payload, padded to 4 bytes.
//
//	e.Nest(list) ... e.Bytes(typ, data) ... e.End(list)    Encoder, into one buffer
//	for a := Decode(b); a.Next(); { a.Type, a.Data }       Decoder, out of one buffer
//
// # Beside mdlayher/netlink
//
// Its AttributeEncoder encodes each nested attribute into a buffer of its own and
// copies it into the outer one; its AttributeDecoder allocates for each level. A
// sync of 10,000 Services writes, and a read back reads, some 300,000 elements of
// three levels, and a cleanup may read a million flows. Per element of a map
// (BenchmarkEncode, BenchmarkDecode; the fastest of several runs):
//
//	             this package          mdlayher/netlink v1.7.3
//	encode        40 ns,  0 allocs      709 ns, 10 allocs
//	decode       191 ns,  0 allocs      644 ns,  9 allocs
//
// It imports nothing of this module.
package attributes
