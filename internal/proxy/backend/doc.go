// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between a node's policy (package model) and the
// kernel mechanisms that implement it: nftables, iptables, ipvs, userspace.
//
//	Desired --> Backend.Sync --> kernel
//	                 |
//	                 +--> Report, error
//
// A backend translates; it makes no policy decisions. The tests in package
// backendtest specify what all backends have in common.
package backend
