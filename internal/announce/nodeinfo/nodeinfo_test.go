// SPDX-License-Identifier: Apache-2.0

package nodeinfo

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce/elect"
)

const maxLength, maxOldLength = 64 << 10, 480 // members.MaxInfo, MaxOldInfo

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestEncodeDecode(t *testing.T) {
	lan := Interface{
		Interface: elect.Interface{Name: "eth0", Up: true, Default4: true, Reception: elect.Silent, Subnets: []netip.Prefix{
			netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:0:1::/64"),
			netip.MustParsePrefix("198.51.100.128/25"), netip.MustParsePrefix("2001:db8::7/128"), netip.MustParsePrefix("0.0.0.0/0"),
		}},
		MAC:   MAC{2, 0, 0, 0, 0, 1},
		Ports: []MAC{{2, 0, 0, 0, 0, 7}, {2, 0, 0, 0, 0, 8}},
	}
	for _, f := range []Info{
		{Interfaces: []Interface{}},
		{InSync: true, Interfaces: []Interface{lan}},
		{Starting: true, Interfaces: []Interface{lan}},
		{Leaving: true, Interfaces: []Interface{lan, {Interface: elect.Interface{Name: "bond0.100", Default6: true, Reception: elect.Hearing}}}},
	} {
		b, whole := f.Encode(maxLength)
		got, ok := Decode(b)
		if !ok || !whole {
			t.Fatalf("%+v: whole %v, decoded %v", f, whole, ok)
		}
		if diff := cmp.Diff(f, got, prefixes); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for n := range b {
			if f, ok := Decode(b[:n]); ok && n != 2 && len(f.Interfaces) != 1 {
				t.Errorf("accepted the first %d of %d bytes as %+v", n, len(b), f)
			}
		}
	}
}

func TestEncodeLeavesOutWhatDoesNotFit(t *testing.T) {
	f := Info{InSync: true}
	for i := range 5000 {
		f.Interfaces = append(f.Interfaces, Interface{Interface: elect.Interface{Name: fmt.Sprintf("interface-%d", i)}})
	}
	b, whole := f.Encode(maxLength)
	got, ok := Decode(b)
	if whole || !ok || len(b) > maxLength || len(got.Interfaces) == 0 || !got.InSync {
		t.Errorf("%d bytes, whole %v, decoded %v with %d interfaces", len(b), whole, ok, len(got.Interfaces))
	}
	f.Interfaces = f.Interfaces[:1000] // more than any node has, and they fit
	b, whole = f.Encode(maxLength)
	if got, ok := Decode(b); !whole || !ok || len(got.Interfaces) != 1000 {
		t.Errorf("%d bytes, whole %v, decoded %v with %d interfaces", len(b), whole, ok, len(got.Interfaces))
	}
	b = f.EncodeOld(maxOldLength)
	if got, ok := Decode(b); !ok || len(b) > maxOldLength || len(got.Interfaces) == 0 {
		t.Errorf("for former versions: %d bytes, decoded %v with %d interfaces", len(b), ok, len(got.Interfaces))
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := Info{InSync: true, Interfaces: []Interface{{Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/23")}}}}}.Encode(maxLength)
	f.Add(b)
	f.Add([]byte{version, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := Decode(b)
		if !ok {
			return
		}
		again, _ := got.encode(b[0], maxLength)
		if len(again) > len(b) {
			t.Fatalf("%x became longer: %x", b, again)
		}
		if second, ok := Decode(again); !ok || cmp.Diff(got, second, prefixes) != "" && bytes.Equal(b, again) {
			t.Fatalf("%+v became %+v", got, second)
		}
	})
}
