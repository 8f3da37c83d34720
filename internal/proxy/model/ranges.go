// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
	"strings"
)

// AddrRange is all addresses from First to Last, both included.
type AddrRange struct{ First, Last netip.Addr }

// RangeOf gives the addresses of a prefix.
func RangeOf(p netip.Prefix) AddrRange {
	last := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	l, _ := netip.AddrFromSlice(last)
	return AddrRange{p.Masked().Addr(), l}
}

// Disjoint sorts ranges, in place, and leaves out those that lie within another.
func Disjoint(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	kept := ps[:0]
	for _, p := range ps {
		if len(kept) == 0 || !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

// NodePortRanges are the addresses that NodePorts answer on, if they are this
// node's, disjoint and sorted. Loopback is among them only if
// LocalhostNodePorts says so, and never ::1: a packet from it cannot leave
// the node, whatever its destination becomes.
func (n *Node) NodePortRanges(fam Family) []AddrRange {
	allowed := n.NodePortAddresses
	if len(allowed) == 0 {
		allowed = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	var mine []netip.Prefix
	for _, p := range allowed {
		if FamilyOf(p.Addr()) == fam {
			mine = append(mine, p.Masked())
		}
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if fam == IPv6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	var ranges []AddrRange
	for _, p := range Disjoint(mine) {
		if fam == IPv4 && n.LocalhostNodePorts {
			ranges = append(ranges, RangeOf(p))
			continue
		}
		ranges = append(ranges, RangeOf(p).without(RangeOf(loopback))...)
	}
	return ranges
}

// without gives what is left of r outside o.
func (r AddrRange) without(o AddrRange) []AddrRange {
	if o.Last.Less(r.First) || r.Last.Less(o.First) {
		return []AddrRange{r}
	}
	var left []AddrRange
	if r.First.Less(o.First) {
		left = append(left, AddrRange{r.First, o.First.Prev()})
	}
	if o.Last.Less(r.Last) {
		left = append(left, AddrRange{o.Last.Next(), r.Last})
	}
	return left
}

// AnswersNodePorts says whether NodePorts answer on a local address.
func (n *Node) AnswersNodePorts(a netip.Addr) bool {
	return slices.ContainsFunc(n.NodePortRanges(FamilyOf(a)), func(r AddrRange) bool {
		return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
	})
}

// IsLocalPod says whether a packet with this source, in by this interface,
// comes from a Pod of this node.
func (n *Node) IsLocalPod(source netip.Addr, iface string) bool {
	if len(n.PodInterfaces) == 0 {
		return containsAddr(n.PodCIDRs, source)
	}
	return slices.ContainsFunc(n.PodInterfaces, func(pattern string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(iface, prefix)
		}
		return iface == pattern
	})
}
