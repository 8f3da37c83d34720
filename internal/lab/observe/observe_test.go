// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/causeway-lb/causeway/internal/lab/network"
)

var byValue = cmpopts.EquateComparable(netip.Addr{})

// Frames written down by hand from RFC 826 and RFC 4861.
func TestParse(t *testing.T) {
	ethernet := func(kind string) string { return "ffffffffffff 02000000000b " + kind }
	v6 := func(hops, body string) string {
		return ethernet("86dd") + " 60000000 0020 3a " + hops + " 20010db8000000010000000000000011 ff020000000000000000000000000001 " + body
	}
	const target = "20010db8000000010000000000000200"
	for _, test := range []struct {
		name, frame string
		want        *Claim
	}{
		{"ARP reply", ethernet("0806") + "0001 0800 06 04 0002 02000000000b c00002c8 020000000064 c0000264",
			&Claim{Address: netip.MustParseAddr("192.0.2.200"), MAC: "02:00:00:00:00:0b"}},
		{"gratuitous ARP request", ethernet("0806") + "0001 0800 06 04 0001 02000000000b c00002c8 000000000000 c00002c8",
			&Claim{Address: netip.MustParseAddr("192.0.2.200"), MAC: "02:00:00:00:00:0b", Unasked: true}},
		{"gratuitous ARP reply", ethernet("0806") + "0001 0800 06 04 0002 02000000000b c00002c8 02000000000b c00002c8",
			&Claim{Address: netip.MustParseAddr("192.0.2.200"), MAC: "02:00:00:00:00:0b", Unasked: true}},
		{"ARP question", ethernet("0806") + "0001 0800 06 04 0001 020000000064 c0000264 000000000000 c00002c8", nil},
		{"ARP probe", ethernet("0806") + "0001 0800 06 04 0001 020000000064 00000000 000000000000 c00002c8", nil},
		{"ARP cut short", ethernet("0806") + "0001 0800 06 04 0002 02000000000b c00002c8 0200", nil},
		{"solicited advertisement", v6("ff", "88000000 60000000 "+target+" 0201 02000000000b"),
			&Claim{Address: netip.MustParseAddr("2001:db8:0:1::200"), MAC: "02:00:00:00:00:0b"}},
		{"unsolicited advertisement", v6("ff", "88000000 20000000 "+target+" 0201 02000000000b"),
			&Claim{Address: netip.MustParseAddr("2001:db8:0:1::200"), MAC: "02:00:00:00:00:0b", Unasked: true}},
		{"advertisement from beyond a router", v6("40", "88000000 60000000 "+target+" 0201 02000000000b"), nil},
		{"advertisement without address", v6("ff", "88000000 60000000 "+target), nil},
		{"option of length 0", v6("ff", "88000000 60000000 "+target+" 0100 02000000000b"), nil},
		{"solicitation", v6("ff", "87000000 00000000 "+target+" 0101 020000000064"), nil},
		{"nothing", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			frame, err := hex.DecodeString(strings.ReplaceAll(test.frame, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			got, ok := parse(frame)
			if ok != (test.want != nil) {
				t.Fatalf("parse = %+v, %t, want %+v", got, ok, test.want)
			}
			if test.want != nil {
				if diff := cmp.Diff(*test.want, got, byValue); diff != "" {
					t.Errorf("claim (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	question, _ := request(netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.100"), make(net.HardwareAddr, 6))
	f.Add(question)
	question, _ = request(netip.MustParseAddr("2001:db8::200"), netip.MustParseAddr("2001:db8::100"), make(net.HardwareAddr, 6))
	f.Add(question)
	f.Fuzz(func(t *testing.T, frame []byte) {
		if claim, ok := parse(frame); ok && (!claim.Address.IsValid() || len(claim.MAC) != 17) {
			t.Errorf("parse = %+v", claim)
		}
	})
}

// The kernel answers for its own addresses, so both protocols can be tried
// against it.
func TestAskTheKernel(t *testing.T) {
	if os.Getenv(inside) == "" {
		runInNamespace(t)
		return
	}
	asker, err := network.New("asker")
	if err != nil {
		t.Fatal(err)
	}
	owner, err := network.New("owner")
	if err != nil {
		t.Fatal(err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	if err := network.Connect(network.End{Namespace: asker, Name: "eth0"}, network.End{Namespace: owner, Name: "eth0", MAC: mac}); err != nil {
		t.Fatal(err)
	}
	for namespace, addresses := range map[*network.Namespace][]string{
		asker: {"192.0.2.1/24", "2001:db8::1/64"}, owner: {"192.0.2.2/24", "2001:db8::2/64"},
	} {
		if err := namespace.Up("eth0"); err != nil {
			t.Fatal(err)
		}
		for _, address := range addresses {
			if err := namespace.AddAddress("eth0", netip.MustParsePrefix(address)); err != nil {
				t.Fatal(err)
			}
		}
	}
	watch, err := Start(asker, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	// A link that was set up carries packets a moment later.
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		if got, err := watch.Ask(t.Context(), netip.MustParseAddr("192.0.2.2"), 50*time.Millisecond); err != nil || len(got) > 0 {
			break
		}
	}
	for address, want := range map[string][]string{
		"192.0.2.2": {mac.String()}, "2001:db8::2": {mac.String()}, "192.0.2.3": nil, "2001:db8::3": nil,
	} {
		got, err := watch.Ask(t.Context(), netip.MustParseAddr(address), 300*time.Millisecond)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("who has %s: %v, %v, want %v", address, got, err, want)
		}
	}
}

const inside = "OBSERVE_TEST_INSIDE"

// runInNamespace runs this test again where it can make what it likes.
func runInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_KERNEL") == "1" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0" "$@"`, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
