// SPDX-License-Identifier: Apache-2.0

// Package backend is the contract between the policy of a node (package
// model) and the kernel mechanisms that carry it out: nftables, iptables,
// ipvs, userspace.
//
//	Desired --> Backend.Sync --> kernel
//	                 |
//	                 +--> Report, error
//
// A backend translates; it takes no decision of policy. What all of them must
// do alike is written down as tests in package backendtest.
package backend
