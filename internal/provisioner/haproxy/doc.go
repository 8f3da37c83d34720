// SPDX-License-Identifier: Apache-2.0

// Package haproxy is the provisioner of an HAProxy (2.6 or later) on a host
// outside the cluster. Everything is done through its runtime interface: nothing
// is written to its host, nothing is reloaded, and no connection breaks.
//
//	client ──> frontend causeway, bound to addresses x port ranges
//	              │  map: "192.0.2.60:8000" -> backend      (set at run time)
//	              ▼
//	           one of a fixed number of empty backends, "slots", of four kinds:
//	              │  cluster | local   health: connect | GET /healthz of healthCheckNodePort
//	              │  any | source      balance: round robin | by client address
//	              ▼
//	           a server for each node, at its NodePort       (added at run time)
//
// Config.Render writes the haproxy.cfg that this needs.
//
// # Owners
//
// Services can share an address as long as their ports differ, so a Service owns
// frontends: address, protocol, port. Owners are in memory, read once from the status of
// the Services of this class; the status is the truth.
//
// # Order
//
// Servers are added before the map refers to them, and removed after it no longer does.
// A server that is removed is set to maintenance, which lets its connections end by
// themselves, and deleted when they have, at the earliest once no client can still be
// trying to connect to it.
//
// # Invariants
//
//   - Every Ensure reads HAProxy's state and repairs what differs. It is called again
//     after Config.Resync at the latest, so that a restarted HAProxy, which has lost
//     everything, is filled again.
//   - A key of the map without an owner is removed.
//
// # Non-goals
//
// UDP (HAProxy proxies TCP only), source ranges, several HAProxies behind one
// class, and running HAProxy.
package haproxy
