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
// # Claims
//
// Services can have one address as long as their ports differ, so what is held
// is a frontend: address, protocol, port. Claims are in memory, read once from
// the status of the Services that have this class; the status is the truth.
//
// # Order
//
// Servers are added before the map leads to them, and the map leads away before
// they are taken out. A server that goes is set to maintenance, which lets its
// connections end by themselves, and deleted when they have, at the earliest once no
// client can still be trying to connect to it.
//
// # Invariants
//
//   - Every Ensure reads what HAProxy has and repairs what differs, whoever
//     changed it; it is called again after Config.Resync at the latest, so a
//     restarted HAProxy, which has lost everything, is filled again.
//   - A key of the map that nobody claims is removed.
//
// # Non-goals
//
// UDP (HAProxy proxies TCP only), source ranges, several HAProxies behind one
// class, and running HAProxy.
package haproxy
