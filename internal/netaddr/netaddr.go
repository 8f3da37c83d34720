// SPDX-License-Identifier: Apache-2.0

// Package netaddr reads addresses and ranges from the API's strings. All who
// read a field read it here, so that none of them sees an address that another
// overlooks.
//
// API servers before Kubernetes 1.36 stored more than the canonical text, and
// such objects are there until somebody writes them again. What they mean was
// settled by those who forwarded until now (k8s.io/utils/net, kubernetes#100895):
// octets with leading zeros are decimal, 10.96.017.009 is 10.96.17.9, and
// IPv4-mapped addresses and ranges are IPv4.
package netaddr

import (
	"net/netip"
	"strings"

	netutils "k8s.io/utils/net"
)

// Parse reads an address. Space around it is ignored; a zone is refused. IPv4-mapped
// addresses are unmapped. It does not allocate for canonical text.
func Parse(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().WithZone(""), a.Zone() == ""
	}
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	return a.Unmap(), ok
}

// ParsePrefix reads a range in CIDR notation and clears the bits behind the
// prefix. Space around it is ignored; a zone is refused. Ranges of IPv4-mapped
// addresses alone are IPv4.
func ParsePrefix(s string) (netip.Prefix, bool) {
	s = strings.TrimSpace(s)
	if p, err := netip.ParsePrefix(s); err == nil {
		return unmap(p), true
	}
	_, network, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	a, _ := netip.AddrFromSlice(network.IP)
	bits, _ := network.Mask.Size()
	return unmap(netip.PrefixFrom(a, bits)), true
}

// ParsePrefixes returns those of the ranges that ParsePrefix can read.
func ParsePrefixes(ranges []string) (prefixes []netip.Prefix) {
	for _, s := range ranges {
		if p, ok := ParsePrefix(s); ok {
			prefixes = append(prefixes, p)
		}
	}
	return prefixes
}

func unmap(p netip.Prefix) netip.Prefix {
	const mapped = 96 // ::ffff:0:0/96
	if p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked()
}
