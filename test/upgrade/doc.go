// SPDX-License-Identifier: Apache-2.0

// Command upgrade upgrades a lab from an earlier version of Causeway to this one and
// downgrades it again, while clients use it, and reports what they lost.
//
//	go run ./test/upgrade -from v0.1.0
//
// The earlier version is a revision of this repository; its programs and manifests
// are taken from a work tree of its own. New connections over IPv4 and IPv6,
// datagrams and long-lived connections run all the time:
//
//	up     the manifests of the new version are applied: controllers roll out;
//	       agents are replaced one by one. With half of them replaced, an address
//	       is moved from an old agent to a new one and back, and the node that
//	       announces it is powered off, once with either version of the agent
//	down   the same with the earlier version's manifests, after the steps in
//	       docs/upgrade.md
//
// It fails if anything was lost, except to a node that was powered off, if two nodes
// answered for one address, if an object or a node still has a name of the earlier
// version after the way up, and if that version's own are missing after the way down.
// It needs what `make test` needs.
package main
