// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/causeway-lb/causeway/internal/netaddr"
)

// WeightAnnotation on an EndpointSlice gives each of its endpoints that share of
// new connections relative to others of the Service, from 1 to MaxWeight; 1 is
// the share of those without.
const WeightAnnotation = "causeway.dev/weight"

// MaxWeight bounds weights: tables grow with their sum.
const MaxWeight = 100

// portKey is by what the ports of Services and of slices find each other. A
// port without a name is the port named "".
type portKey struct {
	name     string
	protocol Protocol
}

// slice is an EndpointSlice as every port of the Service sees it.
type slice struct {
	*sliceT
	endpoints []candidate // without their ports
}

// source is a slice's port that carries one of the Service's.
type source struct {
	slice  *slice
	number uint16
}

// sources gives for each of the Service's ports, by index, which slices of a
// family carry it. The cost follows the number of ports of both, not their
// product. Slices that carry none are not looked into.
func (c *computation) sources(fam Family) [][]source {
	pairs := newPairing(c.in.Service)
	out := make([][]source, len(pairs.ports))
	entries := 0
	var used []*slice
	for _, sl := range c.in.Slices {
		if sliceFamily(sl) != fam {
			continue
		}
		var s *slice
		for _, p := range pairs.of(sl, c.in.Former[sl.Name]) {
			if p.at < 0 {
				continue
			}
			if s == nil {
				s = &slice{sliceT: sl, endpoints: c.endpoints(sl, fam)}
				used = append(used, s)
			}
			out[p.at] = append(out[p.at], source{s, p.number})
			entries += len(s.endpoints)
		}
	}
	c.limitEntries(used, entries)
	return out
}

func sliceFamily(sl *discoveryv1.EndpointSlice) Family {
	switch sl.AddressType {
	case discoveryv1.AddressTypeIPv4:
		return IPv4
	case discoveryv1.AddressTypeIPv6:
		return IPv6
	}
	return 0
}

// slicePort reads a slice's port. One without a number is unusable.
func slicePort(p *discoveryv1.EndpointPort) (key portKey, number uint16, ok bool) {
	if p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
		return portKey{}, 0, false
	}
	if p.Name != nil {
		key.name = *p.Name
	}
	proto := corev1.ProtocolTCP
	if p.Protocol != nil {
		proto = *p.Protocol
	}
	if proto == "" {
		return portKey{}, 0, false
	}
	key.protocol, ok = protocolOf(proto)
	return key, uint16(*p.Port), ok
}

// endpoints reads those of a slice. Connections could not get to, or would
// not come back from, some of the addresses that anybody who may write slices
// can put there; the API server refuses most of them.
func (c *computation) endpoints(sl *sliceT, fam Family) []candidate {
	weight := c.weight(sl)
	out := make([]candidate, 0, len(sl.Endpoints))
	bad, why := "", ""
	for i := range sl.Endpoints {
		ep := &sl.Endpoints[i]
		if len(ep.Addresses) == 0 {
			continue
		}
		addr, unusable := c.endpointAddr(ep.Addresses[0], fam)
		if unusable != "" {
			if why == "" {
				bad, why = ep.Addresses[0], unusable
			}
			continue
		}
		cand := candidate{
			Endpoint:    Endpoint{AddrPort: netip.AddrPortFrom(addr, 0), Weight: weight},
			ready:       isTrue(ep.Conditions.Ready, true),
			serving:     isTrue(ep.Conditions.Serving, true),
			terminating: isTrue(ep.Conditions.Terminating, false),
			hints:       ep.Hints,
		}
		if ep.NodeName != nil {
			cand.setNode(*ep.NodeName, c.node)
		}
		out = append(out, cand)
	}
	if why != "" {
		c.problem("InvalidEndpoint", "EndpointSlice %s has the endpoint %q, which %s, so no connection is forwarded to it or to others like it: "+
			"list addresses of Pods or hosts", sl.Name, bad, why)
	}
	return out
}

// endpointAddr reads the address of an endpoint, and says why it can't be used.
func (c *computation) endpointAddr(raw string, fam Family) (addr netip.Addr, unusable string) {
	addr, ok := netaddr.Parse(raw)
	switch {
	case !ok:
		return addr, "is no IP address"
	case FamilyOf(addr) != fam:
		return addr, "is not " + fam.String()
	case addr.IsUnspecified():
		return addr, "is the unspecified address"
	case addr.IsLoopback():
		return addr, "is a loopback address"
	case addr.IsLinkLocalUnicast():
		return addr, "is a link-local address"
	case addr.IsMulticast():
		return addr, "is a multicast address"
	case addr == broadcast:
		return addr, "is the broadcast address"
	case slices.Contains(c.clusterIPs, addr):
		return addr, "is the Service's own ClusterIP"
	}
	return addr, ""
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// weight is the slice's, 1 and a problem if that is none.
func (c *computation) weight(sl *sliceT) uint16 {
	raw, ok := sl.Annotations[WeightAnnotation]
	if !ok {
		return 1
	}
	n, err := strconv.ParseUint(raw, 10, 16)
	if err != nil || n < 1 || n > MaxWeight {
		c.problem("InvalidWeight", "EndpointSlice %s has annotation %s=%q, which counts as 1: use a whole number from 1 to %d; "+
			"endpoints that are to get no connections must not be ready", sl.Name, WeightAnnotation, raw, MaxWeight)
		return 1
	}
	return uint16(n)
}
