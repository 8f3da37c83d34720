// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Range is addresses of one family, written as a CIDR or as "first-last".
type Range struct {
	Span[netip.Addr]
	// Prefix is the CIDR that it was written as; not valid for "first-last".
	Prefix netip.Prefix
}

// FamilyOf returns the family of an address that is not IPv4-mapped.
func FamilyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// Family returns the family of the range's addresses.
func (r Range) Family() corev1.IPFamily { return FamilyOf(r.First) }

// Contains reports whether the address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
}

// String writes the range as ParseRange reads it.
func (r Range) String() string {
	if r.Prefix.IsValid() {
		return r.Prefix.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// Ends returns the addresses of a CIDR that are not for hosts: the first, which
// names the network (IPv4) or any of its routers (RFC 4291 section 2.6.1), and
// for IPv4 the last, the broadcast address. A CIDR of one or two addresses
// (RFC 3021, RFC 6164) has none, nor has "first-last".
func (r Range) Ends() []Span[netip.Addr] {
	if !r.Prefix.IsValid() || r.Prefix.Bits() > r.First.BitLen()-2 {
		return nil
	}
	ends := []Span[netip.Addr]{{r.First, r.First}}
	if r.First.Is4() {
		ends = append(ends, Span[netip.Addr]{r.Last, r.Last})
	}
	return ends
}

// Special are the addresses that no host can be reached at from elsewhere:
// unspecified, loopback, IPv4-mapped, link-local, multicast, and reserved with
// the broadcast address. The API server refuses pools that hold some; pools that
// were stored before it did give none of them.
func Special() []SpecialRange { return special }

// SpecialRange is one of Special.
type SpecialRange struct {
	Span[netip.Addr]
	// Why says what the addresses are for.
	Why string
}

var special = func() []SpecialRange {
	var out []SpecialRange
	for _, s := range []struct{ prefix, why string }{
		{"0.0.0.0/8", "the unspecified address"},
		{"127.0.0.0/8", "loopback"},
		{"169.254.0.0/16", "link-local addresses"},
		{"224.0.0.0/4", "multicast"},
		{"240.0.0.0/4", "reserved addresses"},
		{"::/32", "the unspecified address, loopback and IPv4-mapped addresses"},
		{"fe80::/10", "link-local addresses"},
		{"ff00::/8", "multicast"},
	} {
		out = append(out, SpecialRange{PrefixSpan(netip.MustParsePrefix(s.prefix)), s.why})
	}
	return out
}()

// SpecialOf returns the ranges of Special of one family.
func SpecialOf(family corev1.IPFamily) []Span[netip.Addr] {
	var out []Span[netip.Addr]
	for _, s := range special {
		if FamilyOf(s.First) == family {
			out = append(out, s.Span)
		}
	}
	return out
}

// ParseRange reads "192.0.2.0/24", "2001:db8::/112" or "192.0.2.10-192.0.2.20".
// Its errors say what to write instead.
func ParseRange(s string) (Range, error) {
	if first, last, ok := strings.Cut(s, "-"); ok {
		return parseFirstLast(s, first, last)
	}
	if !strings.Contains(s, "/") {
		if a, err := netip.ParseAddr(s); err == nil {
			return Range{}, fmt.Errorf("%q is a single address: write %s/%d", s, a, a.BitLen())
		}
		return Range{}, fmt.Errorf("%q is neither a CIDR nor a range: write 192.0.2.0/24, 2001:db8::/112 or 192.0.2.10-192.0.2.20", s)
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return Range{}, fmt.Errorf("%q is not a CIDR (%s): write 192.0.2.0/24 or 2001:db8::/112", s, reason(err))
	}
	if p.Addr().Is4In6() {
		return Range{}, fmt.Errorf("%q is an IPv4-mapped address: write it as IPv4", s)
	}
	if m := p.Masked(); m != p {
		return Range{}, fmt.Errorf("%q has bits set after the /%d: write %s for the network or %s/%d for the one address",
			s, p.Bits(), m, p.Addr(), p.Addr().BitLen())
	}
	return Range{Span: PrefixSpan(p), Prefix: p}, nil
}

func parseFirstLast(s, first, last string) (Range, error) {
	a, err := parseAddr(first)
	if err != nil {
		return Range{}, fmt.Errorf("%q: the first address %w", s, err)
	}
	b, err := parseAddr(last)
	if err != nil {
		return Range{}, fmt.Errorf("%q: the last address %w", s, err)
	}
	switch {
	case a.Is4() != b.Is4():
		return Range{}, fmt.Errorf("%q goes from %s to %s: write one range for each family", s, FamilyOf(a), FamilyOf(b))
	case b.Less(a):
		return Range{}, fmt.Errorf("%q ends before it begins: write %s-%s", s, b, a)
	}
	return Range{Span: Span[netip.Addr]{a, b}}, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q is not an address (%s): write it like 192.0.2.10 or 2001:db8::10, without spaces", s, reason(err))
	case a.Zone() != "":
		return a, fmt.Errorf("%q has a zone: write it without %%%s", s, a.Zone())
	case a.Is4In6():
		return a, fmt.Errorf("%q is IPv4-mapped: write %s", s, a.Unmap())
	}
	return a, nil
}

// reason is netip's explanation without its repetition of the input.
func reason(err error) string {
	text := err.Error()
	if i := strings.LastIndex(text, "): "); i >= 0 {
		return text[i+3:]
	}
	return text
}

// PrefixSpan returns all addresses of a masked prefix.
func PrefixSpan(p netip.Prefix) Span[netip.Addr] {
	last := p.Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(last); bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(last)
	return Span[netip.Addr]{p.Addr(), a}
}

// ParseRanges reads a list of ranges. Each entry that is wrong is one error,
// which begins with the entry's place: "addresses[2]: ..." for field
// "addresses". The ranges that are right are returned either way.
func ParseRanges[S ~string](field string, entries []S) ([]Range, error) {
	return parseList(field, entries, ParseRange)
}

// ParsePortRanges is ParseRanges for ports.
func ParsePortRanges[S ~string](field string, entries []S) ([]PortRange, error) {
	return parseList(field, entries, ParsePortRange)
}

func parseList[S ~string, R any](field string, entries []S, parse func(string) (R, error)) (out []R, err error) {
	var errs []error
	for i, e := range entries {
		if r, err := parse(string(e)); err != nil {
			errs = append(errs, fmt.Errorf("%s[%d]: %w", field, i, err))
		} else {
			out = append(out, r)
		}
	}
	return out, errors.Join(errs...)
}

// PortRange is ports from First to Last, both included.
type PortRange = Span[uint16]

// ParsePortRange reads "30000-30499" or "30080". Ports go from 1 to 65535.
func ParsePortRange(s string) (PortRange, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		last = first
	}
	a, err := parsePort(first)
	if err != nil {
		return PortRange{}, fmt.Errorf("%q: %w", s, err)
	}
	b, err := parsePort(last)
	if err != nil {
		return PortRange{}, fmt.Errorf("%q: %w", s, err)
	}
	if b < a {
		return PortRange{}, fmt.Errorf("%q ends before it begins: write %d-%d", s, b, a)
	}
	return PortRange{a, b}, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '0' || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a port from 1 to 65535: write a range such as 30000-30499 or a port such as 30080", s)
	}
	return uint16(n), nil
}

// SpansOf returns the ranges of one family as spans.
func SpansOf(ranges []Range, family corev1.IPFamily) []Span[netip.Addr] {
	return ofFamily(ranges, family, func(r Range) []Span[netip.Addr] { return []Span[netip.Addr]{r.Span} })
}

// EndsOf returns the Ends of the ranges of one family.
func EndsOf(ranges []Range, family corev1.IPFamily) []Span[netip.Addr] {
	return ofFamily(ranges, family, Range.Ends)
}

func ofFamily(ranges []Range, family corev1.IPFamily, of func(Range) []Span[netip.Addr]) (out []Span[netip.Addr]) {
	for _, r := range ranges {
		if r.Family() == family {
			out = append(out, of(r)...)
		}
	}
	return out
}
