// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/causeway-lb/causeway/internal/lab/network"
	"k8s.io/apimachinery/pkg/types"
)

// linkLocalGateway is every node's address on the links to its Pods.
var linkLocalGateway = netip.MustParseAddr("fe80::1")

// addresses hands out a node's Pod addresses, oldest first, so that an address
// rests as long as possible before it comes again.
type addresses struct {
	cidrs []netip.Prefix

	mu   sync.Mutex
	last uint8
	used map[uint8]bool
}

func newAddresses(cidrs []netip.Prefix) *addresses {
	return &addresses{cidrs: cidrs, last: 1, used: map[uint8]bool{}}
}

// take returns one address of each family, with the same last byte, 2 to 254.
func (a *addresses) take() (uint8, []netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range 253 {
		a.last++
		if a.last == 255 {
			a.last = 2
		}
		if !a.used[a.last] {
			a.used[a.last] = true
			return a.last, a.at(a.last), nil
		}
	}
	return 0, nil, errors.New("take Pod address: all 253 of this node are in use")
}

func (a *addresses) at(number uint8) []netip.Addr {
	out := make([]netip.Addr, 0, len(a.cidrs))
	for _, cidr := range a.cidrs {
		bytes := cidr.Masked().Addr().AsSlice()
		bytes[len(bytes)-1] = number
		address, _ := netip.AddrFromSlice(bytes)
		out = append(out, address)
	}
	return out
}

func (a *addresses) release(number uint8) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, number)
}

// podNetwork is a Pod's network namespace and what leads to it.
type podNetwork struct {
	namespace *network.Namespace
	number    uint8
	addresses []netip.Addr
	link      string
}

// PodNamespace is the name of a Pod's network namespace on its node.
func PodNamespace(uid types.UID) string { return "pod-" + string(uid) }

// connectPod makes a Pod's network namespace: eth0 with one address a family,
// and on the node's side a link with a route for each.
//
//	node                                       pod
//	192.0.2.11 eth0 ── routing ── veth… ────── eth0 10.244.1.5/32
//	                   10.244.1.5 dev veth…    default via 10.244.1.1 (on the veth, /32)
func (k *Kubelet) connectPod(uid types.UID) (p *podNetwork, err error) {
	number, addrs, err := k.addresses.take()
	if err != nil {
		return nil, err
	}
	p = &podNetwork{number: number, addresses: addrs, link: fmt.Sprintf("veth%d", number)}
	defer func() {
		if err != nil {
			k.disconnectPod(p)
		}
	}()
	if p.namespace, err = network.New(PodNamespace(uid)); err != nil {
		return nil, err
	}
	if err := k.host.Remove(p.link); err != nil {
		return nil, err
	}
	host := network.End{Namespace: k.host, Name: p.link}
	if err := network.Connect(host, network.End{Namespace: p.namespace, Name: "eth0"}); err != nil {
		return nil, err
	}
	if err := errors.Join(k.host.Up(p.link), p.namespace.Up("eth0")); err != nil {
		return nil, err
	}
	for _, address := range addrs {
		if err := k.routePod(p, address); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (k *Kubelet) routePod(p *podNetwork, address netip.Addr) error {
	gateway := linkLocalGateway
	everywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	hostPrefix := netip.PrefixFrom(gateway, 64)
	if address.Is4() {
		gateway = k.addresses.at(1)[0]
		everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		hostPrefix = single(gateway)
	}
	steps := []func() error{
		func() error { return k.host.AddAddress(p.link, hostPrefix) },
		func() error { return k.host.AddRoute(single(address), netip.Addr{}, p.link) },
		func() error { return p.namespace.AddAddress("eth0", single(address)) },
		func() error {
			if address.Is6() {
				return nil // link-local addresses are on the link by themselves
			}
			return p.namespace.AddRoute(single(gateway), netip.Addr{}, "eth0")
		},
		func() error { return p.namespace.AddRoute(everywhere, gateway, "eth0") },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (k *Kubelet) disconnectPod(p *podNetwork) {
	if err := k.host.Remove(p.link); err != nil {
		k.log.Error(err, "Pod's link not removed", "interface", p.link)
	}
	if p.namespace != nil {
		if err := p.namespace.Delete(); err != nil {
			k.log.Error(err, "Pod's network not removed", "interface", p.link)
		}
	}
	k.addresses.release(p.number)
}

func single(address netip.Addr) netip.Prefix { return netip.PrefixFrom(address, address.BitLen()) }
