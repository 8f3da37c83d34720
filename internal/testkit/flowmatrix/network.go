// SPDX-License-Identifier: Apache-2.0

package flowmatrix

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/causeway-lb/causeway/internal/proxy/model"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// network is the drawing in the package's documentation, in namespaces.
type network struct {
	spaces map[Place]*nstest.NS
	sctp   chan answer
	// patience is how long a dial waits for an answer.
	patience time.Duration
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	self := nstest.Self(t)
	n := &network{spaces: map[Place]*nstest.NS{Node1: self, Loopback: self}, sctp: make(chan answer, 16), patience: patience}
	lan := nstest.NewNS(t)
	client := nstest.NewNS(t)
	n.spaces[Client], n.spaces[Stranger] = client, client
	n.spaces[Node2] = nstest.NewNS(t)
	nstest.Cable(t, lan, "n1", self, "eth0")
	nstest.Cable(t, lan, "n2", n.spaces[Node2], "eth0")
	nstest.Cable(t, lan, "client", client, "eth0")
	lan.Bridge(t, "br0", "n1", "n2", "client")
	for _, f := range model.Families {
		n.lan(t, f)
	}
	for _, p := range []Place{A, B, X} {
		n.pod(t, p, Node1)
	}
	for _, p := range []Place{C, D} {
		n.pod(t, p, Node2)
	}
	n.forwarding(t, Node1)
	n.forwarding(t, Node2)
	for _, p := range []Place{A, B, C, Node1, Node2} {
		n.serve(t, p)
	}
	n.warmUp(t)
	return n
}

// warmUp waits until everybody reaches the endpoints, so that no row pays for
// neighbour discovery or a bridge that begins to forward.
func (n *network) warmUp(t *testing.T) {
	t.Helper()
	for _, f := range model.Families {
		for _, from := range []Place{Client, Stranger, Node1, Node2, A, X, C, D} {
			for _, at := range []Place{A, B, C, Node1, Node2} {
				var err error
				for range 40 {
					if _, err = n.dialTCP(n.spaces[from], from.Addr(f), netip.AddrPortFrom(at.Addr(f), endpointPort)); err == nil {
						break
					}
				}
				if err != nil {
					for _, p := range []Place{from, Node1, at} {
						t.Logf("%s:\n%s%s", p, n.spaces[p].Run(t, "ip", "neighbour"), n.spaces[p].Run(t, "ip", "route", "get", at.Addr(f).String()))
					}
					t.Fatalf("%s does not reach %s by %s: %v", from, at, f, err)
				}
			}
		}
	}
}

func bits(f model.Family, v4, v6 int) int {
	if f == model.IPv4 {
		return v4
	}
	return v6
}

// lan gives addresses on the LAN and routes to what is behind the nodes. All
// Service addresses lead to node-1.
func (n *network) lan(t *testing.T, f model.Family) {
	t.Helper()
	link := bits(f, 24, 64)
	for _, p := range []Place{Client, Stranger, Node1, Node2} {
		n.spaces[p].Address(t, "eth0", netip.PrefixFrom(p.Addr(f), link))
	}
	// Deprecated, so that masquerading never takes one for a source.
	for p, second := range map[Place]To{Node1: NodePort2, Node2: Foreign} {
		n.spaces[p].Run(t, "ip", "address", "add", netip.PrefixFrom(second.addr(f), link).String(),
			"dev", "eth0", "preferred_lft", "0", "nodad")
	}
	host := bits(f, 32, 128)
	for _, p := range []Place{Client, Node2} {
		for _, to := range []To{ClusterIP, LoadBalance, External} {
			n.spaces[p].Route(t, netip.PrefixFrom(to.addr(f), host), Node1.Addr(f), "eth0")
		}
	}
	n.spaces[Client].Route(t, netip.PrefixFrom(Foreign.addr(f), host), Node1.Addr(f), "eth0")
	pods1, pods2 := podRange(Node1, f), podRange(Node2, f)
	n.spaces[Client].Route(t, pods1, Node1.Addr(f), "eth0")
	n.spaces[Client].Route(t, pods2, Node2.Addr(f), "eth0")
	n.spaces[Node1].Route(t, pods2, Node2.Addr(f), "eth0")
	n.spaces[Node2].Route(t, pods1, Node1.Addr(f), "eth0")
	// node-1 sends what it does not translate towards the client, who drops it.
	n.spaces[Node1].Route(t, netip.PrefixFrom(f.Unspecified(), 0), Client.Addr(f), "eth0")
}

func podRange(node Place, f model.Family) netip.Prefix {
	if node == Node1 {
		return netip.PrefixFrom(A.Addr(f), bits(f, 24, 64)).Masked()
	}
	return netip.PrefixFrom(C.Addr(f), bits(f, 24, 64)).Masked()
}

// pod plugs a Pod into its node by a cable of its own, as CNI plugins do.
func (n *network) pod(t *testing.T, p, node Place) {
	t.Helper()
	ns, host := nstest.NewNS(t), n.spaces[node]
	n.spaces[p] = ns
	port := "pod-" + strings.ToLower(string(p))
	nstest.Cable(t, host, port, ns, "eth0")
	for _, f := range model.Families {
		gateway := pickFamily(f, "169.254.1.1", "fe80::1")
		ns.Address(t, "eth0", netip.PrefixFrom(p.Addr(f), bits(f, 32, 128)))
		host.Address(t, port, netip.PrefixFrom(gateway, bits(f, 32, 64)))
		host.Route(t, netip.PrefixFrom(p.Addr(f), bits(f, 32, 128)), netip.Addr{}, port)
		ns.Route(t, netip.PrefixFrom(gateway, bits(f, 32, 128)), netip.Addr{}, "eth0")
		ns.Route(t, netip.PrefixFrom(f.Unspecified(), 0), gateway, "eth0")
	}
}

func (n *network) forwarding(t *testing.T, p Place) {
	t.Helper()
	n.spaces[p].Must(t, func() error {
		for _, path := range []string{
			"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/route_localnet",
		} {
			// The thread's own view: the namespace is the thread's.
			if err := os.WriteFile("/proc/thread-self/root/proc/sys/"+path, []byte("1"), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}
