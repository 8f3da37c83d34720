// SPDX-License-Identifier: Apache-2.0

package userspace

import (
	"github.com/causeway-lb/causeway/internal/netlink/nft"
	"github.com/causeway-lb/causeway/internal/netlink/nft/expr"
	"github.com/causeway-lb/causeway/internal/proxy/elements"
	"github.com/causeway-lb/causeway/internal/proxy/model"
)

// Name is what the nf_tables tables are called.
const Name = "causeway-userspace"

// setID names a set or map of the tables.
type setID uint8

const (
	setServices         setID = iota // frontend -> action
	setServicesOutside               // the same, seen from outside if that differs
	setNodePorts                     // protocol . port -> action
	setNodePortsOutside              // the same, seen from outside if that differs
	setClusterIPs                    // addresses: other ports are refused
	setLoadBalancerIPs               // the same, from outside
	setRestricted                    // frontends with source ranges
	setSourceRanges                  // frontend . client range
	setLocalPods                     // ranges of the Pods of this node
	setNodePortAddresses
	numSets
)

var setNames = [numSets]string{
	"services", "services-outside", "node-ports", "node-ports-outside", "cluster-ips", "load-balancer-ips",
	"restricted", "source-ranges", "local-pods", "node-port-addresses",
}

// String is the set's name in the kernel.
func (s setID) String() string { return setNames[s] }

func tableOf(f model.Family) nft.Table {
	return nft.Table{Family: nft.FamilyOf(f.Unspecified()), Name: Name}
}

// setsOf describes the sets of a family's table.
func setsOf(f model.Family) []nft.Set {
	addr := tableOf(f).Family.AddrType()
	type ts = []nft.Type
	frontend, port, mark := ts{addr, nft.TypeProto, nft.TypeService}, ts{nft.TypeProto, nft.TypeService}, ts{nft.TypeMark}
	all := []nft.Set{
		setServices: {Key: frontend, Data: mark}, setServicesOutside: {Key: frontend, Data: mark},
		setNodePorts: {Key: port, Data: mark}, setNodePortsOutside: {Key: port, Data: mark},
		setClusterIPs: {Key: ts{addr}}, setLoadBalancerIPs: {Key: ts{addr}}, setRestricted: {Key: frontend},
		setSourceRanges: {Key: append(ts{addr, nft.TypeProto, nft.TypeService}, addr), Interval: true},
		setLocalPods:    {Key: ts{addr}, Interval: true}, setNodePortAddresses: {Key: ts{addr}, Interval: true},
	}
	for id := range all {
		all[id].Table, all[id].Name = tableOf(f), setNames[id]
	}
	return all
}

// action is the value of a services map, and the packet's mark from then on.
type action uint32

const (
	actionReject action = 1
	actionDrop   action = 2
	// Mark is what packets have that belong to the proxy, all of its bits: a
	// routing rule makes them local.
	Mark action = 0x5b000001
)

// data is the action as a map's value.
func (a action) data() string { return string(expr.Word(uint32(a))) }

// elementID tells elements apart.
type elementID = elements.ID[setID]

// dialled is the frontend of an element of a services map.
func dialled(id elementID) (model.Key, bool) {
	switch id.Set {
	case setServices, setServicesOutside:
		return elements.Frontend(id.Family, id.Key, true)
	case setNodePorts, setNodePortsOutside:
		return elements.Frontend(id.Family, id.Key, false)
	}
	return model.Key{}, false
}
