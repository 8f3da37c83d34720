// SPDX-License-Identifier: Apache-2.0

package l2

import (
	"net/netip"
	"slices"

	"github.com/causeway-lb/causeway/internal/announce"
	"github.com/causeway-lb/causeway/internal/announce/elect"
	"github.com/causeway-lb/causeway/internal/announce/l2/wire"
	"github.com/causeway-lb/causeway/internal/announce/links"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/announce/nodeinfo"
)

// cluster is what this node knows of the others, as of the last announce.Desired.
// It is not changed but replaced as a whole.
type cluster struct {
	self    string
	desired *announce.Desired                      // never nil
	listed  map[netip.Addr]*announce.Advertisement // desired's
	owners  map[wire.MAC]owner
	bonds   map[bondPort][]wire.MAC
}

// owner is the interface of a node that has a hardware address.
type owner struct{ node, iface string }

// bondPort is the hardware address of a bond's port.
type bondPort struct {
	node string
	mac  wire.MAC
}

func newCluster(self string, d *announce.Desired) cluster {
	c := cluster{
		self: self, desired: d, listed: make(map[netip.Addr]*announce.Advertisement, len(d.Advertisements)),
		owners: map[wire.MAC]owner{}, bonds: map[bondPort][]wire.MAC{},
	}
	for i := range d.Advertisements {
		c.listed[d.Advertisements[i].Addr] = &d.Advertisements[i]
	}
	for name, info := range d.Infos {
		for _, k := range info.Interfaces {
			c.own(name, k)
		}
	}
	for i := range d.Links {
		c.own(self, d.Links[i].Info())
	}
	return c
}

// own records the hardware addresses of an interface. Those of its ports are its own
// as well: a bond in mode balance-alb puts them in its ARP replies.
func (c *cluster) own(node string, k nodeinfo.Interface) {
	c.owners[k.MAC] = owner{node, k.Name}
	for _, p := range k.Ports {
		if p != k.MAC {
			c.owners[p] = owner{node, k.Name}
			c.bonds[bondPort{node, p}] = append(c.bonds[bondPort{node, p}], k.MAC)
		}
	}
}

// bondOf returns the hardware addresses of the bonds of a node that have a port with
// the address mac.
func (c *cluster) bondOf(node string, mac wire.MAC) []wire.MAC { return c.bonds[bondPort{node, mac}] }

// senders returns the nodes that may send frames, with whether the agent of each may
// be of a former version.
func (c *cluster) senders() map[string]bool {
	out := make(map[string]bool, len(c.desired.Members))
	for _, n := range c.desired.Nodes {
		out[n.Name] = false
	}
	for name, m := range c.desired.Members {
		out[name] = m.Old
	}
	delete(out, c.self)
	return out
}

func (c *cluster) member(name string) members.Member { return c.desired.Members[name] }

func (c *cluster) result(addr netip.Addr) elect.Result {
	if a := c.listed[addr]; a != nil {
		return a.Result
	}
	return elect.Result{}
}

// anyAlive reports whether any other node's agent answers.
func (c *cluster) anyAlive() bool {
	for _, m := range c.desired.Members {
		if m.Alive() {
			return true
		}
	}
	return false
}

// forwards reports whether another node's kernel is thought to forward.
func (c *cluster) forwards(name string) bool {
	m, ok := c.desired.Members[name]
	return ok && name != c.self && (m.Alive() || m.State == members.HostAnswers)
}

// hardware returns the hardware addresses with which a node announces an address.
func (c *cluster) hardware(name string, addr netip.Addr) []wire.MAC {
	a := c.listed[addr]
	if a == nil {
		return nil
	}
	var out []wire.MAC
	for _, k := range c.announcing(name, &a.Address) {
		out = append(out, k.MAC)
	}
	return out
}

// announcing returns the interfaces on which a node announces an address, or would.
func (c *cluster) announcing(name string, a *elect.Address) []nodeinfo.Interface {
	all := c.desired.Infos[name].Interfaces
	ifaces := make([]elect.Interface, 0, len(all))
	for _, k := range all {
		ifaces = append(ifaces, k.Interface)
	}
	var out []nodeinfo.Interface
	for _, k := range elect.On(a, ifaces) {
		out = append(out, all[k])
	}
	return out
}

// linkDown reports whether a node has published that the interfaces are down on
// which it announces an address.
func (c *cluster) linkDown(name string, a *elect.Address) bool {
	on := c.announcing(name, a)
	return len(on) > 0 && !slices.ContainsFunc(on, func(k nodeinfo.Interface) bool { return k.Up })
}

// silentOn reports whether a node is known not to be on the link of this node's
// interface with an index: neither its agent nor its kernel answers there.
func (c *cluster) silentOn(index int, name string) bool {
	if !c.member(name).Gone() {
		return false
	}
	for _, k := range c.desired.Links {
		if k.Index == index {
			return slices.ContainsFunc(k.Subnets, func(s netip.Prefix) bool {
				return slices.ContainsFunc(c.desired.InternalIPs[name], s.Contains)
			})
		}
	}
	return false
}

// heardBy returns the nodes that are alive and hear others on the link of this node's
// interface with an index.
func (c *cluster) heardBy(index int) (hearing []string) {
	at := slices.IndexFunc(c.desired.Relevant, func(l links.Link) bool { return l.Index == index })
	if at < 0 {
		return nil
	}
	for name, info := range c.desired.Infos {
		if c.member(name).Alive() && slices.ContainsFunc(info.Interfaces, func(k nodeinfo.Interface) bool {
			return k.Up && k.Reception == elect.Hearing && elect.SameLink(&c.desired.Relevant[at].Interface, &k.Interface)
		}) {
			hearing = append(hearing, name)
		}
	}
	return hearing
}

// internalIP returns a node's address of a family; the zero Addr for none.
func (c *cluster) internalIP(name string, six bool) netip.Addr {
	ips := c.desired.InternalIPs[name]
	if i := slices.IndexFunc(ips, func(a netip.Addr) bool { return a.Is6() == six }); i >= 0 {
		return ips[i]
	}
	return netip.Addr{}
}

// nodeOf returns the node that has an InternalIP; "" for none.
func (c *cluster) nodeOf(ip netip.Addr) string {
	for name, ips := range c.desired.InternalIPs {
		if slices.Contains(ips, ip) {
			return name
		}
	}
	return ""
}
