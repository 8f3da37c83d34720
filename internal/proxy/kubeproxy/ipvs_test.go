// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	ipvsnl "github.com/causeway-lb/causeway/internal/netlink/ipvs"
)

// Whose a virtual server is.
func TestTheirs(t *testing.T) {
	const (
		service, service6, node, node6 = "10.96.0.10", "fd00:10:96::10", "192.0.2.11", "2001:db8:2::11"
		pod, pod2, pod6                = "10.244.1.2:8080", "10.244.1.4:8080", "[fd00:10:244:1::2]:8080"
	)
	server := func(protocol uint8, addr string, port uint16, reals ...string) ipvsnl.VirtualServer {
		s := ipvsnl.VirtualServer{Key: ipvsnl.Key{Addr: netip.MustParseAddr(addr), Port: port, Protocol: protocol}}
		for _, r := range reals {
			s.Reals = append(s.Reals, ipvsnl.RealServer{AddrPort: netip.MustParseAddrPort(r)})
		}
		return s
	}
	of := func(addrs ...string) map[netip.Addr]bool {
		out := map[netip.Addr]bool{}
		for _, a := range addrs {
			out[netip.MustParseAddr(a)] = true
		}
		return out
	}
	tagged, marked := server(unix.IPPROTO_TCP, service, 81, pod), server(unix.IPPROTO_TCP, service, 82, pod)
	tagged.Tag, marked.Mark = true, 7
	services := []ipvsnl.VirtualServer{
		server(unix.IPPROTO_TCP, service, 80, pod, pod2), server(unix.IPPROTO_TCP, service6, 80, pod6), server(unix.IPPROTO_UDP, service, 53, pod),
	}
	set := map[port]bool{{unix.IPPROTO_TCP, 30090}: true, {unix.IPPROTO_TCP, 8443}: true}
	for _, tc := range []struct {
		name   string
		server ipvsnl.VirtualServer
		want   bool
	}{
		{"a NodePort in a set", server(unix.IPPROTO_TCP, node, 30090), true},
		{"a NodePort of another range in a set", server(unix.IPPROTO_TCP, node, 8443, pod), true},
		{"the set of another protocol", server(unix.IPPROTO_UDP, node, 30090), false},
		{"a NodePort in no set yet", server(unix.IPPROTO_TCP, node, 30080, pod, pod2), true},
		{"with the endpoints of this node alone", server(unix.IPPROTO_TCP, node, 30080, pod2), true},
		{"IPv6", server(unix.IPPROTO_TCP, node6, 30080, pod6), true},
		{"UDP", server(unix.IPPROTO_UDP, node, 30053, pod), true},
		{"endpoints of another protocol", server(unix.IPPROTO_UDP, node, 30080, pod2), false},
		{"also somewhere else", server(unix.IPPROTO_TCP, node, 30080, pod, "198.51.100.1:80"), false},
		{"without endpoints", server(unix.IPPROTO_TCP, node, 30080), false},
		{"a load balancer of Pods at a port of its own", server(unix.IPPROTO_TCP, node, 443, pod), false},
		{"not at the node", server(unix.IPPROTO_TCP, "198.51.100.79", 30080, pod), false},
		{"ours", tagged, false},
		{"by mark", marked, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var want []ipvsnl.Key
			for _, s := range services {
				want = append(want, s.Key)
			}
			if tc.want {
				want = append(want, tc.server.Key)
			}
			got := theirs(append(services[:len(services):len(services)], tc.server), of(service, service6), of(node, node6), set)
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b ipvsnl.Key) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
