// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"
)

// The lab's addresses: documentation ranges on the LAN (RFC 5737, RFC 3849),
// private ones behind it.
var (
	// LAN4 and LAN6 are the segment that every machine is on.
	LAN4 = netip.MustParsePrefix("192.0.2.0/24")
	LAN6 = netip.MustParsePrefix("2001:db8:0:1::/64")
	// ServiceCIDR4 and ServiceCIDR6 are where ClusterIPs come from.
	ServiceCIDR4 = netip.MustParsePrefix("10.96.0.0/16")
	ServiceCIDR6 = netip.MustParsePrefix("fd00:10:96::/112")
	// APIServer is where the API server listens.
	APIServer = netip.MustParseAddrPort("192.0.2.10:6443")
	// DNS is the ClusterIP kept for a DNS server.
	DNS = netip.MustParseAddr("10.96.0.10")
)

// Names of machines that aren't worker nodes.
const (
	LAN          = "lan"
	ControlPlane = "control-plane"
	Client       = "client"
)

// Numbers on the LAN: the last byte of a machine's addresses.
const (
	routerNumber       = 1
	controlPlaneNumber = 10
	clientNumber       = 100
)

// NodeName returns the name of worker node i, from 1.
func NodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// machine is a place on the LAN.
type machine struct {
	name   string
	number uint8
}

// addresses returns a machine's addresses on the LAN, IPv4 first.
func (m machine) addresses() []netip.Addr {
	return []netip.Addr{at(LAN4, m.number), at(LAN6, m.number)}
}

// mac is the same in every run, so that packet dumps can be read.
func (m machine) mac() net.HardwareAddr {
	return net.HardwareAddr{0x02, 0, 0, 0, 0, m.number}
}

// podCIDRs are a node's: the control plane's is number 0, the workers' 1 to n.
func (m machine) podCIDRs() []netip.Prefix {
	i := m.number - controlPlaneNumber
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i)),
	}
}

// at returns the address of a prefix with this last byte, written in IPv6 with
// the decimal digits as hexadecimal ones: 2001:db8:0:1::11 for 11.
func at(prefix netip.Prefix, number uint8) netip.Addr {
	if prefix.Addr().Is6() {
		return netip.MustParseAddr(fmt.Sprintf("%s%d", prefix.Masked().Addr(), number))
	}
	bytes := prefix.Masked().Addr().As4()
	bytes[3] = number
	return netip.AddrFrom4(bytes)
}
