// SPDX-License-Identifier: Apache-2.0

package model

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Packet is the first packet of a connection, as it reaches this node.
type Packet struct {
	Source, Destination netip.Addr
	Port                uint16
	Protocol            Protocol
	// Self: this node sends it. Interface: where it comes in otherwise.
	Self      bool
	Interface string
	// ToSelf: Destination is an address of this node.
	ToSelf bool
}

// Decision is what Desired has happen with a Packet.
type Decision struct {
	// Service and Frontend are whose packet it is; Frontend is nil if it is
	// nobody's, and the packet goes its way unless Action says otherwise.
	Service  types.NamespacedName
	Frontend *Frontend
	// Inside says which view was taken.
	Inside bool
	// Ours is false for packets that are none of Desired's business.
	Ours   bool
	Action Action
	// Endpoints are the candidates if Action is Forward.
	Endpoints []Endpoint
	Affinity  int64 // seconds
	// Excluded: the source ranges do not admit the client.
	Excluded bool
}

// Decide follows a packet through d. It walks all Services: it explains and
// tests, and forwards nothing.
func (d *Desired) Decide(p Packet) Decision {
	inside := p.Self || d.Node.IsLocalPod(p.Source, p.Interface)
	dec := Decision{Inside: inside}
	var owner *Service
	var frontend *Frontend
	address := false
	for _, svc := range d.Services {
		for i := range svc.Frontends {
			f := &svc.Frontends[i]
			if f.Matches(p, &d.Node) {
				if frontend == nil || f.Kind < frontend.Kind {
					owner, frontend = svc, f
				}
				continue
			}
			if f.Addr == p.Destination && (f.Kind == ClusterIP || f.Kind == LoadBalancerIP && !p.ToSelf && !inside) {
				address = true
			}
		}
	}
	if frontend == nil {
		if address {
			dec.Ours, dec.Action = true, Reject
		}
		return dec
	}
	dec.Ours, dec.Service, dec.Frontend = true, owner.Name, frontend
	if frontend.Restricted && !containsAddr(frontend.SourceRanges, p.Source) {
		dec.Excluded, dec.Action = true, Drop
		return dec
	}
	t := frontend.Outside
	if inside {
		t = frontend.Inside
	}
	dec.Action, dec.Endpoints, dec.Affinity = t.Action, t.Endpoints, int64(t.Affinity.Seconds())
	return dec
}

// Matches says whether p dials f.
func (f *Frontend) Matches(p Packet, n *Node) bool {
	if f.Port != p.Port || f.Protocol != p.Protocol || f.Family() != FamilyOf(p.Destination) {
		return false
	}
	if f.Kind != NodePort {
		return f.Addr == p.Destination
	}
	return p.ToSelf && n.AnswersNodePorts(p.Destination)
}

// AnswersNodePorts says whether NodePorts answer on a local address.
func (n *Node) AnswersNodePorts(a netip.Addr) bool {
	return slices.ContainsFunc(n.NodePortRanges(FamilyOf(a)), func(r AddrRange) bool {
		return r.First.Compare(a) <= 0 && a.Compare(r.Last) <= 0
	})
}

// IsLocalPod says whether a packet with this source, in by this interface,
// comes from a Pod of this node.
func (n *Node) IsLocalPod(source netip.Addr, iface string) bool {
	if len(n.PodInterfaces) == 0 {
		return containsAddr(n.PodCIDRs, source)
	}
	return slices.ContainsFunc(n.PodInterfaces, func(pattern string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(iface, prefix)
		}
		return iface == pattern
	})
}

// Masquerades says whether a connection by f to ep gets this node's address as
// its source: see the table in the package's documentation.
func (n *Node) Masquerades(p Packet, f *Frontend, ep Endpoint) bool {
	switch {
	case p.Self && p.Source == ep.AddrPort.Addr():
		return false // it never leaves the node
	case n.MasqueradeAll && !f.KeepsClient:
		return true
	case ep.Local && p.Source == ep.AddrPort.Addr():
		return true
	case !p.Self && n.IsLocalPod(p.Source, p.Interface):
		return false
	case p.Source.IsLoopback():
		return true
	}
	return !ep.Local
}
