// SPDX-License-Identifier: Apache-2.0

package alloc

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRange(t *testing.T) {
	for _, tc := range []struct{ in, first, last string }{
		{"192.0.2.0/24", "192.0.2.0", "192.0.2.255"},
		{"192.0.2.7/32", "192.0.2.7", "192.0.2.7"},
		{"0.0.0.0/0", "0.0.0.0", "255.255.255.255"},
		{"2001:db8::/112", "2001:db8::", "2001:db8::ffff"},
		{"192.0.2.10-192.0.2.20", "192.0.2.10", "192.0.2.20"},
		{"2001:db8::1-2001:db8::1", "2001:db8::1", "2001:db8::1"},
	} {
		r, err := ParseRange(tc.in)
		if err != nil {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if r.First.String() != tc.first || r.Last.String() != tc.last || r.String() != tc.in {
			t.Errorf("%s: from %s to %s, written %s", tc.in, r.First, r.Last, r)
		}
	}
}

func TestParseRangeErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "write 192.0.2.0/24",
		"192.0.2.7":              "write 192.0.2.7/32",
		"192.0.2.5/24":           "write 192.0.2.0/24 for the network or 192.0.2.5/32",
		"192.0.2.300/24":         "is not a CIDR",
		"192.0.2.20-192.0.2.10":  "write 192.0.2.10-192.0.2.20",
		"192.0.2.1-2001:db8::1":  "write one range for each family",
		"192.0.2.1 - 192.0.2.9":  "without spaces",
		"192.0.2.1-":             "the last address",
		"::ffff:192.0.2.1/128":   "write it as IPv4",
		"::ffff:192.0.2.1-::2":   "write 192.0.2.1",
		"fe80::1%eth0-fe80::2":   "without %eth0",
		"192.0.02.1-192.0.2.9":   "is not an address",
		"192.0.2.0/33":           "is not a CIDR",
		"192.0.2.1-192.0.2.2-.3": "is not an address",
	} {
		if _, err := ParseRange(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want it to say %q", in, err, want)
		}
	}
	_, err := ParseRanges("ranges", []string{"192.0.2.0/24", "x", "192.0.2.7"})
	want := `ranges[1]: "x" is neither a CIDR nor a range: write 192.0.2.0/24, 2001:db8::/112 or 192.0.2.10-192.0.2.20
ranges[2]: "192.0.2.7" is a single address: write 192.0.2.7/32`
	if err == nil || err.Error() != want {
		t.Errorf("list: got\n%v\nwant\n%s", err, want)
	}
}

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24", "192.0.2.1-192.0.2.9", "2001:db8::/64", "::-::1", "1.1.1.1/0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			return
		}
		again, err := ParseRange(r.String())
		if err != nil || again != r {
			t.Errorf("%q reads as %v, which reads as %v, %v", s, r, again, err)
		}
		if r.Last.Less(r.First) || r.First.Is4() != r.Last.Is4() {
			t.Errorf("%q reads as %v", s, r)
		}
	})
}

func TestEnds(t *testing.T) {
	for in, want := range map[string][]string{
		"192.0.2.0/24":            {"192.0.2.0", "192.0.2.255"},
		"192.0.2.4/30":            {"192.0.2.4", "192.0.2.7"},
		"192.0.2.4/31":            nil,
		"192.0.2.4/32":            nil,
		"2001:db8::/112":          {"2001:db8::"},
		"2001:db8::/127":          nil,
		"192.0.2.0-192.0.2.255":   nil,
		"2001:db8::-2001:db8::ff": nil,
	} {
		r, err := ParseRange(in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range r.Ends() {
			got = append(got, s.First.String())
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestParsePortRange(t *testing.T) {
	for in, want := range map[string]PortRange{"30000-30499": {30000, 30499}, "30080": {30080, 30080}, "1-65535": {1, 65535}} {
		if got, err := ParsePortRange(in); err != nil || got != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"":            "is not a port",
		"0-10":        "is not a port from 1 to 65535",
		"30000-70000": "is not a port from 1 to 65535",
		"30499-30000": "write 30000-30499",
		"030-31":      "is not a port",
		"+30":         "is not a port",
	} {
		if _, err := ParsePortRange(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want it to say %q", in, err, want)
		}
	}
}

func TestOverlaps(t *testing.T) {
	k := Addresses()
	spans := func(entries ...string) (out []Span[netip.Addr]) {
		for _, e := range entries {
			r, err := ParseRange(e)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, r.Span)
		}
		return out
	}
	mine := Named[netip.Addr]{"blue", spans("192.0.2.0/25", "192.0.2.100-192.0.2.200")}
	others := []Named[netip.Addr]{
		{"blue", spans("192.0.2.0/24")},
		{"red", spans("198.51.100.0/24", "192.0.2.190-192.0.2.210")},
	}
	got := k.Overlaps(mine, others)
	want := []string{
		"192.0.2.100-192.0.2.200 overlaps 192.0.2.0-192.0.2.127 of the same pool in 192.0.2.100-192.0.2.127",
		"192.0.2.100-192.0.2.200 overlaps 192.0.2.190-192.0.2.210 of pool red in 192.0.2.190-192.0.2.200",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("overlaps (-want +got):\n%s", diff)
	}
}

func TestSubtract(t *testing.T) {
	k := Ports()
	got := k.Subtract([]PortRange{{100, 199}, {300, 399}, {150, 250}}, []PortRange{{90, 99}, {120, 129}, {240, 310}, {399, 500}, {125, 127}})
	want := []PortRange{{100, 119}, {130, 239}, {311, 398}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("subtract (-want +got):\n%s", diff)
	}
}

// Gaps in IPv6 can be wider than a number of 64 bits.
func TestSubtractWideGaps(t *testing.T) {
	k := Addresses()
	span := func(s string) Span[netip.Addr] {
		r, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		return r.Span
	}
	var got []string
	for _, s := range k.Subtract([]Span[netip.Addr]{span("2001:db8::/48")}, []Span[netip.Addr]{span("2001:db8:0:5::/64")}) {
		got = append(got, k.Text(s))
	}
	want := []string{"2001:db8::-2001:db8:0:4:ffff:ffff:ffff:ffff", "2001:db8:0:6::-2001:db8:0:ffff:ffff:ffff:ffff:ffff"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("subtract (-want +got):\n%s", diff)
	}
}
