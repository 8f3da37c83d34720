// SPDX-License-Identifier: Apache-2.0

package netaddr_test

import (
	"net/netip"
	"strings"
	"testing"

	netutils "k8s.io/utils/net"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"10.96.17.9":                   "10.96.17.9",
		"10.96.017.009":                "10.96.17.9",
		"192.000.002.010":              "192.0.2.10",
		" 192.0.2.1\n":                 "192.0.2.1",
		"::ffff:192.0.2.1":             "192.0.2.1",
		"::ffff:192.000.002.001":       "192.0.2.1",
		"::FFFF:c000:0201":             "192.0.2.1",
		"2001:0db8:0000::0001":         "2001:db8::1",
		"2001:DB8::A":                  "2001:db8::a",
		"0:0:0:0:0:0:0:1":              "::1",
		"":                             "",
		"192.0.2":                      "",
		"192.0.2.256":                  "",
		"192.0.2.0x1":                  "",
		"192.0.2.1/32":                 "",
		"fe80::1%eth0":                 "",
		"::ffff:192.0.2.1%eth0":        "",
		"www.example.com":              "",
		"192.0.2.0000000000000000001x": "",
	} {
		a, ok := netaddr.Parse(in)
		if got := text(a.String(), ok); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.0/24":              "192.0.2.0/24",
		"192.000.002.000/24":        "192.0.2.0/24",
		"192.0.2.77/24":             "192.0.2.0/24",
		"192.000.002.077/24":        "192.0.2.0/24",
		"192.0.2.0/024":             "192.0.2.0/24",
		" 192.0.2.0/24 ":            "192.0.2.0/24",
		"::ffff:192.0.2.0/120":      "192.0.2.0/24",
		"::ffff:192.000.002.9/120":  "192.0.2.0/24",
		"::ffff:0:0/96":             "0.0.0.0/0",
		"::ffff:0:0/95":             "::fffe:0:0/95",
		"2001:0db8:0000::/032":      "2001:db8::/32",
		"::/0":                      "::/0",
		"0.0.0.0/0":                 "0.0.0.0/0",
		"":                          "",
		"192.0.2.0":                 "",
		"192.0.2.0/33":              "",
		"::ffff:192.0.2.0/129":      "",
		"fe80::%eth0/64":            "",
		"192.0.2.0/255.255.255.000": "",
	} {
		p, ok := netaddr.ParsePrefix(in)
		if got := text(p.String(), ok); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func text(s string, ok bool) string {
	if !ok {
		return ""
	}
	return s
}

// Canonical text is what nearly all objects have.
func TestCanonicalDoesNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		netaddr.Parse("192.0.2.1")
		netaddr.Parse("2001:db8::1")
		netaddr.ParsePrefix("2001:db8::/64")
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParse: whatever the library that all others read the API with accepts means the
// same here.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "010.1.2.3", "::ffff:1.2.3.4", "2001:db8::1", "192.0.2.0/24", "::ffff:1.2.3.4/100", "::/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := netaddr.Parse(s)
		if ok && (a.Is4In6() || a.Zone() != "") {
			t.Errorf("%q: %s", s, a)
		}
		if theirs := netutils.ParseIPSloppy(strings.TrimSpace(s)); theirs != nil && (!ok || theirs.String() != a.String()) {
			t.Errorf("%q: got %s, %v, want %s", s, a, ok, theirs)
		}
		p, ok := netaddr.ParsePrefix(s)
		if ok && p != p.Masked() {
			t.Errorf("%q: %s", s, p)
		}
		_, network, err := netutils.ParseCIDRSloppy(strings.TrimSpace(s))
		if err != nil {
			return
		}
		theirs, _ := netip.AddrFromSlice(network.IP)
		if !ok || !p.IsValid() || !p.Contains(theirs.Unmap()) {
			t.Errorf("%q: got %s, %v, want %s", s, p, ok, network)
		}
	})
}
