// SPDX-License-Identifier: Apache-2.0

package links

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
	"github.com/causeway-lb/causeway/internal/lab/network"
)

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

// TestRead reads what ip has set up in a namespace with eth0, eth1 and eth2,
// and on which of them an address would be announced.
func TestRead(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("REQUIRE_KERNEL") != "1" {
		t.Skip("network namespaces need root; set REQUIRE_KERNEL=1 to fail instead")
	}
	const in4, in6, out4, out6 = "192.0.2.200", "2001:db8:0:1::200", "203.0.113.7", "2001:db8:9::7"
	tests := []struct {
		name    string
		ip      []string // commands
		pattern string
		on      map[string]string // address -> interfaces
	}{
		{
			name: "one subnet, one default route",
			ip:   []string{"addr add 192.0.2.11/24 dev eth0", "route add default via 192.0.2.1", "addr add 2001:db8:0:1::11/64 dev eth0", "route add default via 2001:db8:0:1::1"},
			on:   map[string]string{in4: "eth0", in6: "eth0", out4: "eth0", out6: "eth0"},
		},
		{
			name: "several next hops",
			ip: []string{
				"addr add 192.0.2.11/24 dev eth0", "addr add 198.51.100.11/24 dev eth1", "route add default nexthop via 192.0.2.1 nexthop via 198.51.100.1",
				"addr add 2001:db8:0:1::11/64 dev eth0", "addr add 2001:db8:0:2::11/64 dev eth1", "route add default nexthop via 2001:db8:0:1::1 nexthop via 2001:db8:0:2::1",
			},
			on: map[string]string{in4: "eth0", in6: "eth0", out4: "eth0 eth1", out6: "eth0 eth1"},
		},
		{
			name: "several next hops on one interface",
			ip:   []string{"addr add 192.0.2.11/24 dev eth0", "route add default nexthop via 192.0.2.1 nexthop via 192.0.2.2"},
			on:   map[string]string{out4: "eth0", out6: ""},
		},
		{
			name: "nexthop objects",
			ip: []string{
				"addr add 192.0.2.11/24 dev eth0", "addr add 198.51.100.11/24 dev eth1", "addr add 2001:db8:0:1::11/64 dev eth1",
				"nexthop add id 1 via 192.0.2.1 dev eth0", "nexthop add id 2 via 198.51.100.1 dev eth1", "nexthop add id 3 group 1/2", "nexthop add id 4 via 2001:db8:0:1::1 dev eth1",
				"route add default nhid 3", "-6 route add default nhid 4",
			},
			on: map[string]string{out4: "eth0 eth1", out6: "eth1"},
		},
		{
			name: "nexthop objects whose routes do not tell the interfaces",
			ip: []string{
				"sysctl net/ipv4/nexthop_compat_mode=0",
				"addr add 192.0.2.11/24 dev eth0", "addr add 198.51.100.11/24 dev eth1", "addr add 2001:db8:0:1::11/64 dev eth1",
				"nexthop add id 1 via 192.0.2.1 dev eth0", "nexthop add id 2 via 198.51.100.1 dev eth1", "nexthop add id 3 group 1/2", "nexthop add id 4 via 2001:db8:0:1::1 dev eth1",
				"route add default nhid 3", "-6 route add default nhid 4",
			},
			on: map[string]string{out4: "eth0 eth1", out6: "eth1"},
		},
		{
			name: "the default route is that of the lowest metric",
			ip: []string{
				"addr add 192.0.2.11/24 dev eth0", "addr add 198.51.100.11/24 dev eth1",
				"route add default via 192.0.2.1 metric 200", "route add default via 198.51.100.1 metric 100",
			},
			on: map[string]string{in4: "eth0", out4: "eth1"},
		},
		{
			name: "two interfaces in one subnet",
			ip: []string{
				"addr add 192.0.2.11/24 dev eth1", "addr add 192.0.2.12/24 dev eth0", "route add default nexthop via 192.0.2.1 dev eth0 nexthop via 192.0.2.1 dev eth1",
				"addr add 2001:db8:0:1::11/64 dev eth1 metric 10", "addr add 2001:db8:0:1::12/64 dev eth0 metric 20",
			},
			on: map[string]string{in4: "eth1", in6: "eth1", out4: "eth1", out6: ""},
		},
		{
			name: "two interfaces in one subnet, by metric",
			ip:   []string{"addr add 192.0.2.11/24 dev eth0 metric 200", "addr add 192.0.2.12/24 dev eth1 metric 100"},
			on:   map[string]string{in4: "eth1"},
		},
		{
			name:    "two interfaces in one subnet, both named",
			ip:      []string{"addr add 192.0.2.11/24 dev eth1", "addr add 192.0.2.12/24 dev eth0", "addr add 2001:db8:0:1::11/64 dev eth1 metric 10", "addr add 2001:db8:0:1::12/64 dev eth0 metric 20"},
			pattern: "eth[01]",
			on:      map[string]string{in4: "eth1", in6: "eth1", out4: "eth1", out6: "eth1"},
		},
		{
			name:    "the other one named",
			ip:      []string{"addr add 192.0.2.11/24 dev eth1", "addr add 192.0.2.12/24 dev eth0"},
			pattern: "eth0",
			on:      map[string]string{in4: "eth0", out4: "eth0"},
		},
		{
			name:    "two networks, both named",
			ip:      []string{"addr add 192.0.2.11/24 dev eth0", "addr add 198.51.100.11/24 dev eth1"},
			pattern: "eth[01]",
			on:      map[string]string{in4: "eth0", out4: "eth0 eth1"},
		},
		{
			name: "the smaller subnet",
			ip:   []string{"addr add 192.0.2.11/24 dev eth0", "addr add 192.0.2.212/25 dev eth1", "addr add 2001:db8::11/32 dev eth0", "addr add 2001:db8:0:1::11/64 dev eth2"},
			on:   map[string]string{in4: "eth1", in6: "eth2", "192.0.2.100": "eth0"},
		},
		{
			name: "an address that is bound is no subnet",
			ip:   []string{"addr add 192.0.2.11/24 dev eth0", "addr add 192.0.2.200/32 dev eth1", "addr add 2001:db8:0:1::200/128 dev eth1", "addr add 2001:db8:0:1::11/64 dev eth0"},
			on:   map[string]string{in4: "eth0", in6: "eth0"},
		},
		{
			name: "on-link by a router's advertisement",
			ip:   []string{"addr add 2001:db8:0:1::11/128 dev eth1", "route add 2001:db8:0:1::/64 dev eth1 proto ra", "route add 2001:db8:9::/64 via fe80::1 dev eth0 proto ra"},
			on:   map[string]string{in6: "eth1", out6: ""},
		},
	}
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n, err := network.New(fmt.Sprintf("links-%d-%d", os.Getpid(), i))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = n.Delete() })
			commands := []string{}
			for e := range 3 {
				commands = append(commands, fmt.Sprintf("link add eth%d type veth peer name peer%d", e, e), fmt.Sprintf("link set eth%d up", e), fmt.Sprintf("link set peer%d up", e),
					fmt.Sprintf("link set peer%d arp off", e)) // peers are none of the node's
			}
			for _, c := range append(commands, tc.ip...) {
				err := n.Do(func() error {
					words := strings.Fields(c)
					if words[0] == "sysctl" {
						key, value, _ := strings.Cut(words[1], "=")
						return os.WriteFile("/proc/sys/"+key, []byte(value), 0o644)
					}
					if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
						return fmt.Errorf("ip %s: %w: %s", c, err, out)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			var links []Link
			if err := n.Do(func() (err error) { links, err = read(); return err }); err != nil {
				t.Fatal(err)
			}
			pool := &elect.Pool{}
			if tc.pattern != "" {
				pool.Interfaces = []string{tc.pattern}
			}
			got := map[string]string{}
			for a := range tc.on {
				address := elect.Address{Addr: netip.MustParseAddr(a), Pool: pool}
				mine := Relevant(links, []elect.Address{address})
				// The others see what is published.
				var told nodeinfo.Info
				for _, k := range mine {
					told.Interfaces = append(told.Interfaces, k.Info())
				}
				b, _ := told.Encode(64 << 10)
				told, _ = nodeinfo.Decode(b)
				var names, theirs []string
				for _, i := range elect.On(&address, Interfaces(mine)) {
					names = append(names, mine[i].Name)
				}
				var heard []elect.Interface
				for _, f := range told.Interfaces {
					heard = append(heard, f.Interface)
				}
				for _, i := range elect.On(&address, heard) {
					theirs = append(theirs, heard[i].Name)
				}
				slices.Sort(names)
				slices.Sort(theirs)
				if diff := cmp.Diff(names, theirs); diff != "" {
					t.Errorf("%s: the others see it differently (-here +there):\n%s", a, diff)
				}
				got[a] = strings.Join(names, " ")
			}
			if diff := cmp.Diff(tc.on, got); diff != "" {
				t.Errorf("interfaces (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRelevant(t *testing.T) {
	subnet := netip.MustParsePrefix("192.0.2.0/24")
	links := []Link{
		{Index: 2, Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{subnet, netip.MustParsePrefix("198.51.100.0/24")}}},
		{Index: 3, Interface: elect.Interface{Name: "eth1", Up: true, Default4: true, Subnets: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}},
		{Index: 4, Interface: elect.Interface{Name: "veth7", Up: true}},
	}
	a := elect.Address{Addr: netip.MustParseAddr("192.0.2.200"), Pool: &elect.Pool{}}
	got := Relevant(links, []elect.Address{a})
	want := []Link{{Index: 2, Interface: elect.Interface{Name: "eth0", Up: true, Subnets: []netip.Prefix{subnet}}}}
	if diff := cmp.Diff(want, got, prefixes); diff != "" {
		t.Errorf("by subnet (-want +got):\n%s", diff)
	}
	far := elect.Address{Addr: netip.MustParseAddr("192.0.3.7"), Pool: &elect.Pool{}}
	if got := Relevant(links, []elect.Address{far}); len(got) != 1 || got[0].Name != "eth1" || len(got[0].Subnets) != 0 {
		t.Errorf("by default route: %+v", got)
	}
	pattern := elect.Address{Addr: netip.MustParseAddr("192.0.2.200"), Pool: &elect.Pool{Interfaces: []string{"veth*"}}}
	if got := Relevant(links, []elect.Address{pattern}); len(got) != 1 || got[0].Name != "veth7" {
		t.Errorf("by pattern: %+v", got)
	}
	if got := Relevant(links, nil); len(got) != 0 || got == nil {
		t.Errorf("without addresses: %+v", got)
	}
	if len(links[0].Subnets) != 2 {
		t.Error("the argument was changed")
	}
}
