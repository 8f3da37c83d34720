// SPDX-License-Identifier: Apache-2.0

// Package none is the backend of a node whose packets somebody else forwards:
// kube-proxy, where Causeway only hands out and announces addresses.
//
//	forwarder, for example kube-proxy --GET /livez--> Sync: in sync or not
//
// It programs nothing. What it contributes is the answer to one question, which
// the announcer asks before it answers for an address: does this node forward?
//
// # Non-goals
//
// Whether the forwarder serves a certain Service is not asked: it has no
// interface for that.
package none
