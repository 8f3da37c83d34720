// SPDX-License-Identifier: Apache-2.0

// Command upgrade takes a lab from a former version of Causeway to this one and
// back, while clients use it, and says what they lost.
//
//	go run ./test/upgrade -from v0.1.0
//
// The former version is a revision of this repository; its programs and manifests
// are taken from a work tree of its own. New connections over IPv4 and IPv6,
// datagrams and connections that stay open go on all the time:
//
//	up     the manifests of the new version are applied: controllers roll out;
//	       agents are replaced one by one. With half of them replaced, an address
//	       is moved from a former agent to a new one and back, and the node that
//	       announces it is powered off, once with either kind of agent
//	down   the same with the former version's manifests, after what docs/upgrade.md
//	       says
//
// It fails when anything was lost but to a node that was powered off, and when two
// nodes answered for one address. It needs what `make test` needs.
package main
