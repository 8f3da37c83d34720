// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between a node's policy (package model) and the
// kernel mechanisms that implement it: nftables, iptables, ipvs, userspace.
//
//	Desired --> Backend.Resync --> kernel      read, compare, repair
//	Delta ----> Backend.Apply  --> kernel      one step
//	                 |
//	                 +--> Report, error
//
// A backend translates; it makes no policy decisions. Its caller, package syncer,
// owns the record of what the kernel has and of the Services that it rejects. The
// tests in package backendtest specify what all backends have in common.
package backend
