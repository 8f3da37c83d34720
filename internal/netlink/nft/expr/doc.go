// SPDX-License-Identifier: Apache-2.0

// Package expr builds the expressions of nftables rules in the words that rules are
// written in:
//
//	expr.For(family).Daddr(expr.R0).Lookup(expr.R0, set).Goto(chain).Rule("no such port")
//
// Expressions pass values in sixteen registers of 4 bytes, from R0 on; a key of
// several parts lies in registers that follow each other. A match that fails ends
// the rule.
//
// The encoders of single expressions are those of github.com/google/nftables/expr;
// Add takes any of them. The package imports package nft and nothing else of this
// module.
package expr
