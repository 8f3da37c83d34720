// SPDX-License-Identifier: Apache-2.0

// Package none is the backend of a node whose packets another program forwards:
// kube-proxy, where Causeway only assigns and announces addresses.
//
//	forwarder, for example kube-proxy --GET /livez--> Sync: in sync or not
//
// It programs nothing. It only reports whether this node forwards, which the
// announcer needs to know before it answers for an address.
//
// # Non-goals
//
// It does not check whether the forwarder serves a specific Service, because the
// forwarder has no interface for that.
package none
