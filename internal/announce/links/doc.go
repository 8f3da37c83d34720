// SPDX-License-Identifier: Apache-2.0

// Package links reads this node's interfaces, as far as LoadBalancer addresses may
// be announced on them, and watches them by netlink: hardware address, carrier,
// on-link prefixes, default routes (also those by nexthop objects), and which of two
// interfaces in one subnet the kernel uses.
//
// It imports elect and nodeinfo, whose types it fills, and decides nothing.
package links
