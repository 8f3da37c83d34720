// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// End is one end of a veth pair. A nil MAC lets the kernel choose.
type End struct {
	Namespace *Namespace
	Name      string
	MAC       net.HardwareAddr
}

// Connect makes a veth pair between two namespaces. Both ends are down.
func Connect(a, b End) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = a.Name
	attributes.HardwareAddr = a.MAC
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: b.Name, PeerHardwareAddr: b.MAC, PeerNamespace: netlink.NsFd(b.Namespace.ns)}
	if err := a.Namespace.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("connect %s in %s with %s in %s: %w", a.Name, a.Namespace.Name, b.Name, b.Namespace.Name, err)
	}
	return nil
}

// AddBridge makes a bridge that is up. Its ports forward at once (there is no
// spanning tree) and flood multicast (there is no snooping).
func (n *Namespace) AddBridge(name string) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = name
	if err := n.links.LinkAdd(&netlink.Bridge{LinkAttrs: attributes, MulticastSnooping: new(bool)}); err != nil {
		return fmt.Errorf("add bridge %s in %s: %w", name, n.Name, err)
	}
	return n.Up(name)
}

// Plug makes an interface a port of a bridge and sets it up.
func (n *Namespace) Plug(name, bridge string) error {
	port, err := n.link(name)
	if err != nil {
		return err
	}
	master, err := n.link(bridge)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("plug %s into %s: %w", name, bridge, err)
	}
	return n.Up(name)
}

// Unplug takes an interface out of its bridge and leaves it up: nothing passes
// any more, and the other end doesn't notice.
func (n *Namespace) Unplug(name string) error {
	port, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetNoMaster(port); err != nil {
		return fmt.Errorf("unplug %s: %w", name, err)
	}
	return nil
}

func (n *Namespace) link(name string) (netlink.Link, error) {
	link, err := n.links.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s in %s: %w", name, n.Name, err)
	}
	return link, nil
}

// MAC returns an interface's hardware address.
func (n *Namespace) MAC(name string) (net.HardwareAddr, error) {
	link, err := n.link(name)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// Index returns an interface's index.
func (n *Namespace) Index(name string) (int, error) {
	link, err := n.link(name)
	if err != nil {
		return 0, err
	}
	return link.Attrs().Index, nil
}

// Up sets an interface up.
func (n *Namespace) Up(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s in %s up: %w", name, n.Name, err)
	}
	return nil
}

// Down sets an interface down; the peer of a veth loses its carrier.
func (n *Namespace) Down(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	if err := n.links.LinkSetDown(link); err != nil {
		return fmt.Errorf("set %s in %s down: %w", name, n.Name, err)
	}
	return nil
}

// Remove deletes an interface; absent is not an error.
func (n *Namespace) Remove(name string) error {
	link, err := n.links.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil {
		err = n.links.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove interface %s in %s: %w", name, n.Name, err)
	}
	return nil
}

// AddAddress gives an interface an address. IPv6 addresses skip duplicate
// address detection: they would be unusable for a second or two.
func (n *Namespace) AddAddress(name string, prefix netip.Prefix) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: ipNet(prefix)}
	if prefix.Addr().Is6() {
		address.Flags = unix.IFA_F_NODAD
	}
	if err := n.links.AddrAdd(link, address); err != nil {
		return fmt.Errorf("add %s to %s in %s: %w", prefix, name, n.Name, err)
	}
	return nil
}

// AddRoute adds or replaces a route. An invalid via means that the destination
// is on the link itself; an empty name lets the kernel choose the interface
// from via.
func (n *Namespace) AddRoute(to netip.Prefix, via netip.Addr, name string) error {
	route := &netlink.Route{Dst: ipNet(to)}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	} else if to.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	if name != "" {
		link, err := n.link(name)
		if err != nil {
			return err
		}
		route.LinkIndex = link.Attrs().Index
	}
	if err := n.links.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s via %s %s in %s: %w", to, via, name, n.Name, err)
	}
	return nil
}

// Neighbour returns the MAC that the namespace has learned for an address, and
// nil when it has none.
func (n *Namespace) Neighbour(name string, address netip.Addr) (net.HardwareAddr, error) {
	link, err := n.link(name)
	if err != nil {
		return nil, err
	}
	family := netlink.FAMILY_V4
	if address.Is6() {
		family = netlink.FAMILY_V6
	}
	neighbours, err := n.links.NeighList(link.Attrs().Index, family)
	if err != nil {
		return nil, fmt.Errorf("list neighbours in %s: %w", n.Name, err)
	}
	for _, neighbour := range neighbours {
		if ip, ok := netip.AddrFromSlice(neighbour.IP); ok && ip.Unmap() == address && neighbour.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) == 0 {
			return neighbour.HardwareAddr, nil
		}
	}
	return nil, nil
}

// FlushNeighbours forgets every address learned on an interface.
func (n *Namespace) FlushNeighbours(name string) error {
	link, err := n.link(name)
	if err != nil {
		return err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		neighbours, err := n.links.NeighList(link.Attrs().Index, family)
		if err != nil {
			return fmt.Errorf("list neighbours in %s: %w", n.Name, err)
		}
		for _, neighbour := range neighbours {
			if neighbour.State&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0 {
				continue
			}
			if err := n.links.NeighDel(&neighbour); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget neighbour %s in %s: %w", neighbour.IP, n.Name, err)
			}
		}
	}
	return nil
}

func ipNet(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}

// Host returns an address with the length of the prefix it is in, as
// AddAddress takes it.
func Host(address netip.Addr, in netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(address, in.Bits())
}
